"""Curves over the tokens of training stages, a pair of panels for each stage."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from wrinklefree.evaluate.canvas import GREY, PALE, heading, panel_grid, panels, tokens_axis
from wrinklefree.evaluate.history import History
from wrinklefree.evaluate.scores import LABELS
from wrinklefree.evaluate.smoothing import downsample, moving_average

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def stage_panels(
    histories: dict[str, History], title: str, heights: tuple[float, float] = (4.0, 1.0)
) -> tuple[Figure, list[Axes], list[Axes]]:
    """Two panels of relative ``heights`` for every stage; three stages beside each other."""
    columns = min(3, len(histories))
    bands = math.ceil(len(histories) / columns)
    figure, grid = panels(
        2 * bands,
        columns,
        (3.3 * columns + 0.4, 0.8 + 3.3 * bands),
        gridspec_kw={"height_ratios": [*heights] * bands},
    )
    heading(figure, title)
    upper, lower = [], []
    for index in range(bands * columns):
        band, column = divmod(index, columns)
        pair = grid[2 * band * columns + column], grid[(2 * band + 1) * columns + column]
        if index >= len(histories):
            for axes in pair:
                axes.set_axis_off()
            continue
        upper.append(pair[0])
        lower.append(pair[1])
    for axes, below, (name, history) in zip(upper, lower, histories.items(), strict=True):
        axes.set_title(LABELS.get(name, name))
        axes.tick_params(axis="x", labelbottom=False)
        for panel in (axes, below):
            panel.set_xlim(0, history.tokens[-1])
            tokens_axis(panel)
    return figure, upper, lower


def single_panels(
    histories: dict[str, History], title: str, empty: str
) -> tuple[Figure, list[Axes]]:
    """A panel for every stage, three beside each other; without any stage it says ``empty``."""
    number = max(len(histories), 1)
    figure, grid = panel_grid(number, min(3, number), (3.3, 2.7), (0.4, 0.9))
    heading(figure, title)
    if not histories:
        grid[0].set_axis_off()
        grid[0].text(0.5, 0.5, empty, ha="center", color=GREY)
        return figure, []
    for axes, (name, history) in zip(grid, histories.items(), strict=True):
        axes.set_title(LABELS.get(name, name))
        axes.set_xlim(0, history.tokens[-1])
        axes.set_xlabel("training tokens")
        tokens_axis(axes)
    return figure, grid


def legend_of_lines(figure: Figure, lines: dict[str, dict[str, Any]]) -> None:
    """What the lines mean, below the panels: of each its colour and style, by what it is of."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=name, **line) for name, line in lines.items()]
    figure.legend(handles=handles, loc="outside lower left", ncols=5)


def curve(axes: Axes, history: History, name: str, color: str) -> None:
    """A metric over tokens: single steps pale and thin, their moving average on top."""
    tokens, values = reported(history, name)
    axes.plot(*downsample(tokens, values), color=PALE, linewidth=0.8)
    smooth = moving_average(values, reach(len(values)))
    axes.plot(*downsample(tokens, smooth), color=color, linewidth=1.6)


def points(history: History, name: str) -> tuple[list[float], list[float]]:
    """Tokens and values of a metric, thinned for drawing."""
    return downsample(*reported(history, name))


def reported(history: History, name: str) -> tuple[list[float], list[float]]:
    """Tokens and values at the steps that reported the metric."""
    pairs = zip(history.tokens, history.series(name), strict=True)
    kept = [(float(tokens), value) for tokens, value in pairs if math.isfinite(value)]
    return [tokens for tokens, _ in kept], [value for _, value in kept]


def reach(points: int) -> int:
    """Neighbours on either side in a moving average: it spans about a twentieth of the run."""
    return points // 40
