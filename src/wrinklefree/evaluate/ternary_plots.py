"""Plots of ternary weights: their codes, what lies behind them, and how they change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wrinklefree.evaluate.canvas import (
    BLUE,
    GREY,
    INK,
    MODEL_COLORS,
    ORANGE,
    PALE,
    heading,
    label_first_column,
    panel_grid,
    panels,
    styled,
    tokens_axis,
)
from wrinklefree.evaluate.curves import points, reported
from wrinklefree.evaluate.history import History
from wrinklefree.evaluate.scores import LABELS
from wrinklefree.evaluate.ternary import HISTOGRAM_EDGES, LayerTernary
from wrinklefree.kernels.quantize_weights.reference import ITERATIONS
from wrinklefree.quant.settings import Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STATISTICS = {
    "ternary/flipped": "codes that\nan update\nchanges",
    "ternary/flipped_since": "codes not\nwhat they were\nat the start",
    "ternary/zero": "codes\nthat are 0",
    "ternary/dead_rows": "outputs with\nno code but 0",
    "ternary/threshold_distance": "distance to\nanother code\n(scales)",
    "ternary/scale": "scale",
}
"""Lines of :func:`code_changes`, and what they are of: shares where no unit is named."""


def gaussian_zero_share(fit: Scale) -> float:
    """Share of zero codes of normally distributed weights, P(|w| < s / 2): 0.31 under absmean, 0.46
    under the scale of least squares, which a learned one begins with."""
    scale = absmean = math.sqrt(2.0 / math.pi)
    for _ in range(ITERATIONS if fit != "absmean" else 0):
        scale = absmean * math.exp(-(scale**2) / 8.0) / math.erfc(scale / math.sqrt(8.0))
    return math.erf(scale / math.sqrt(8.0))


@styled
def ternary_shares(layers: Sequence[LayerTernary], model: str) -> Figure:
    """Shares of the codes 0, -1 and +1 over depth, a panel for each kind of linear layer."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    figure, kinds = _kind_panels(layers, f"Ternary codes per layer: {LABELS.get(model, model)}")
    colors = {"zero": PALE, "minus": ORANGE, "plus": BLUE}
    for axes, chosen in kinds:
        floor = [0.0] * len(chosen)
        for share, color in colors.items():
            heights = [getattr(layer, share) for layer in chosen]
            depths = [layer.depth for layer in chosen]
            axes.bar(depths, heights, width=0.86, bottom=floor, color=color)
            floor = [low + height for low, height in zip(floor, heights, strict=True)]
        axes.axhline(gaussian_zero_share(chosen[0].fit), color=INK, linewidth=1.0, linestyle="--")
        axes.set_ylim(0.0, 1.0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _label(kinds, "decoder layer", "share of weights")
    named = {"zero": "code 0", "minus": "code −1", "plus": "code +1"}
    handles = [Patch(facecolor=colors[share], label=label) for share, label in named.items()]
    zeros = f"zeros of Gaussian weights ({100 * gaussian_zero_share(layers[0].fit):.0f} %)"
    line = Line2D([], [], color=INK, linestyle="--", label=zeros)
    figure.legend(handles=[*handles, line], loc="outside lower left", ncols=4)
    return figure


@styled
def latent_weights(layers: Sequence[LayerTernary], model: str) -> Figure:
    """Histogram of latent weights in units of their scale, all layers of a kind together.

    The first and the last bar hold all that lies beyond.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import PercentFormatter

    figure, kinds = _kind_panels(
        layers, f"Latent weights behind the codes: {LABELS.get(model, model)}"
    )
    width = HISTOGRAM_EDGES[1] - HISTOGRAM_EDGES[0]
    for axes, chosen in kinds:
        counts = [sum(bins) for bins in zip(*(layer.histogram for layer in chosen), strict=True)]
        shares = [count / sum(counts) for count in counts]
        color = MODEL_COLORS.get(model, BLUE)
        colors = [PALE if abs(left + width / 2) < 0.5 else color for left in HISTOGRAM_EDGES[:-1]]
        axes.bar(HISTOGRAM_EDGES[:-1], shares, width=width, align="edge", color=colors)
        for threshold in (-0.5, 0.5):
            axes.axvline(threshold, color=INK, linewidth=1.0, linestyle="--")
        axes.set_xlim(HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1])
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _label(kinds, "latent weight / scale", "share of weights")
    line = Line2D([], [], color=INK, linestyle="--", label="where a code changes (±½)")
    figure.legend(handles=[line], loc="outside lower left")
    return figure


@styled
def ternary_scales(layers: Sequence[LayerTernary], model: str) -> Figure:
    """The scale of every ternary matrix over depth, a panel for each kind of linear layer."""
    from matplotlib.ticker import MaxNLocator

    figure, kinds = _kind_panels(
        layers, f"What a code of 1 stands for, per layer: {LABELS.get(model, model)}"
    )
    for axes, chosen in kinds:
        scales = [layer.scale for layer in chosen]
        axes.plot(
            [layer.depth for layer in chosen],
            scales,
            "o",
            color=MODEL_COLORS.get(model, BLUE),
            markersize=4.0,
        )
        axes.set_ylim(0.0, 1.1 * max(layer.scale for layer in layers))
        axes.grid(visible=True, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _label(kinds, "decoder layer", "scale (unit of weights)")
    return figure


@styled
def code_changes(histories: dict[str, History]) -> Figure:
    """What telemetry tells of the codes over tokens: a line of panels for each statistic that a
    training measured, and a column for each such training.
    """
    from matplotlib.ticker import MaxNLocator

    measured = {
        name: history for name, history in histories.items() if history.reports("ternary/flipped")
    }
    if not measured:
        figure, (axes,) = panels(1, 1, (6.0, 1.6))
        axes.text(0.0, 0.5, "not measured: telemetry_interval of every training is 0", color=GREY)
        axes.set_axis_off()
        return figure
    shown = {
        metric: label
        for metric, label in _STATISTICS.items()
        if any(history.reports(metric) for history in measured.values())
    }
    rows, columns = len(shown), len(measured)
    size = (2.6 * columns + 0.9, 1.15 * rows + 1.0)
    figure, grid = panels(rows, columns, size, sharex="col", sharey="row")
    heading(figure, "Ternary codes over training")
    for row, (metric, label) in enumerate(shown.items()):
        line = grid[row * columns :][:columns]
        highest = max(
            max(reported(history, metric)[1], default=0.0) for history in measured.values()
        )
        for axes, (name, history) in zip(line, measured.items(), strict=True):
            color = MODEL_COLORS.get(name, GREY)
            axes.plot(
                *points(history, metric),
                ".-",
                color=color,
                linewidth=1.2,
                markersize=3.0,
                clip_on=False,
            )
            axes.set_xlim(0, history.tokens[-1])
            axes.set_ylim(0.0, 1.1 * highest or 1.0)
            axes.yaxis.set_major_locator(MaxNLocator(3))
            if row == 0:
                axes.set_title(LABELS.get(name, name))
            if row == rows - 1:
                axes.set_xlabel("training tokens")
                tokens_axis(axes)
        label_first_column(line, label)
    return figure


def _kind_panels(
    layers: Sequence[LayerTernary], title: str
) -> tuple[Figure, list[tuple[Axes, list[LayerTernary]]]]:
    """A panel for each kind of linear layer, and the layers of that kind."""
    kinds = list(dict.fromkeys(layer.kind for layer in layers))
    figure, grid = panel_grid(
        len(kinds), min(4, len(kinds)), (2.5, 1.9), (0.6, 0.9), sharex=True, sharey=True
    )
    heading(figure, title)
    found = []
    for axes, kind in zip(grid, kinds, strict=True):
        axes.set_title(kind)
        axes.grid(visible=False)
        found.append((axes, [layer for layer in layers if layer.kind == kind]))
    return figure, found


def _label(kinds: list[tuple[Axes, list[LayerTernary]]], horizontal: str, vertical: str) -> None:
    """Name the axes below the lowest panel of each column, and left of each line of panels."""
    columns = min(4, len(kinds))
    for axes, _ in kinds[-columns:]:
        axes.set_xlabel(horizontal)
        axes.tick_params(axis="x", labelbottom=True)
    label_first_column([axes for axes, _ in kinds], vertical)
