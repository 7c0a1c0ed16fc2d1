"""The plots of a search. Every function returns a matplotlib figure of ``search.json``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from wrinklefree.evaluate.canvas import (
    BLUE,
    GREY,
    VERMILION,
    heading,
    label_first_column,
    panels,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Trial = dict[str, Any]
_WIDE = 5.0
"""A ratio of values from which on their axis is logarithmic."""


@styled
def tried_values(content: dict[str, Any]) -> Figure:
    """Loss of the finished models by each setting; marks at the top where trials were stopped."""
    paths = list(content["trials"][content["best"]]["values"])
    columns = min(3, len(paths))
    rows = math.ceil(len(paths) / columns)
    figure, grid = panels(rows, columns, (max(5.0, 3.4 * columns), 1.2 + 2.6 * rows))
    heading(figure, "Held-out loss by setting")
    for axes, path in zip(grid, paths, strict=False):
        _draw_values(axes, path, content)
    for axes in grid[len(paths) :]:
        axes.set_axis_off()
    label_first_column(grid, "nats per token")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower left", ncols=3)
    return figure


def _draw_values(axes: Axes, path: str, content: dict[str, Any]) -> None:
    best = content["trials"][content["best"]]
    stopped, whole = _apart(content)

    def values(trials: list[Trial]) -> list[Any]:
        found = [trial["values"][path] for trial in trials]
        return [str(value) if isinstance(value, bool | str) else value for value in found]

    axes.set_title(path)
    losses = [trial["loss"] for trial in whole]
    axes.scatter(values(whole), losses, s=18, color=BLUE, label="trained to the end")
    axes.scatter(values([best]), best["loss"], s=44, color=VERMILION, zorder=3, label="best")
    top, edge = [1.0] * len(stopped), axes.get_xaxis_transform()
    axes.plot(values(stopped), top, "|", color=GREY, ms=8, transform=edge, label="stopped")
    drawn = values(content["trials"])
    if not isinstance(drawn[0], str) and min(drawn) > 0 and max(drawn) > _WIDE * min(drawn):
        axes.set_xscale("log")


@styled
def trial_curves(content: dict[str, Any]) -> Figure:
    """Held-out loss over the steps of every trial."""
    figure, (axes,) = panels(1, 1, (7.0, 3.8))
    heading(figure, "Held-out loss of every trial")
    stopped, whole = _apart(content)
    for trials, color, label in ((stopped, GREY, "stopped"), (whole, BLUE, "trained to the end")):
        _draw_curves(axes, trials, color, label, 0.9)
    _draw_curves(axes, [content["trials"][content["best"]]], VERMILION, "best", 2.0)
    axes.set_xlabel("steps")
    axes.set_ylabel("nats per token")
    figure.legend(loc="outside lower left", ncols=3)
    return figure


def _draw_curves(axes: Axes, trials: list[Trial], color: str, label: str, width: float) -> None:
    for number, trial in enumerate(trials):
        steps = [int(step) for step in trial["held_out"]]
        losses = list(trial["held_out"].values())
        own = None if number else label
        axes.plot(steps, losses, "o-", color=color, linewidth=width, markersize=2, label=own)


def _apart(content: dict[str, Any]) -> tuple[list[Trial], list[Trial]]:
    """Trials that were stopped, and those that were not."""
    trials = content["trials"]
    whole = [trial for trial in trials if trial["state"] == "complete"]
    return [trial for trial in trials if trial not in whole], whole
