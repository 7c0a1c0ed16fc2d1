"""The plots of the research stages. Every function returns a matplotlib figure.

Shapes: N runs, D domains, K the target and every domain, S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from wrinklefree.evaluate.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    PALE,
    VERMILION,
    heading,
    panels,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wrinklefree.research.intervals import Difference


@styled
def predicted_losses(
    names: Sequence[str], measured_NK: np.ndarray, predicted_NK: np.ndarray, fitted: int
) -> Figure:
    """Predicted against measured loss of every run: a panel for the target and for each domain."""
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure, grid = panels(rows, columns, (3.0 * columns, 0.8 + 2.9 * rows))
    heading(figure, "Losses of small models, predicted from their mixtures")
    for index, axes in enumerate(grid):
        if index >= len(names):
            axes.set_axis_off()
            continue
        axes.set_title(names[index])
        measured_N, predicted_N = measured_NK[:, index], predicted_NK[:, index]
        axes.scatter(measured_N[:fitted], predicted_N[:fitted], s=18, color=GREY, label="fitted")
        axes.scatter(measured_N[fitted:], predicted_N[fitted:], s=26, color=BLUE, label="held out")
        axes.axline((measured_N.mean(), measured_N.mean()), slope=1.0, color=PALE, zorder=0)
        if index % columns == 0:
            axes.set_ylabel("predicted (nats per token)")
        if index + columns >= len(names):
            axes.set_xlabel("measured (nats per token)")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=2)
    return figure


@styled
def mixture_weights(
    present: Mapping[str, float],
    weights_ND: np.ndarray,
    recipe: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
) -> Figure:
    """Weights of all runs, of the present mixture and of the proposed one with its interval."""
    figure, (axes,) = panels(1, 1, (7.0, 1.4 + 0.5 * len(present)))
    heading(figure, "Mixtures of the small trainings, and the one proposed")
    for place, name in enumerate(present):
        drawn_N = weights_ND[:, place]
        axes.scatter(drawn_N, np.full(len(drawn_N), place), s=14, color=PALE)
        axes.plot(intervals[name], (place - 0.22,) * 2, color=VERMILION, linewidth=2.0)
        axes.scatter(recipe[name], place - 0.22, s=34, color=VERMILION, zorder=3)
        axes.scatter(present[name], place + 0.22, s=34, color=INK, marker="D", zorder=3)
    for label, color, marker in (
        ("runs", PALE, "o"),
        ("present", INK, "D"),
        ("proposed, with 95 % of bootstraps", VERMILION, "o"),
    ):
        axes.scatter([], [], color=color, marker=marker, label=label)
    axes.set_yticks(range(len(present)), list(present))
    axes.invert_yaxis()
    axes.set_xlim(left=0.0)
    axes.set_xlabel("share of the training tokens")
    figure.legend(loc="outside lower left", ncols=3)
    return figure


@styled
def differences(found: Mapping[str, Difference], confidence: float) -> Figure:
    """Loss of the candidate less that of the present mixture: intervals, and every seed's own."""
    colors = {"better": GREEN, "worse": VERMILION, "undecided": GREY}
    figure, (axes,) = panels(1, 1, (7.0, 1.5 + 0.42 * len(found)))
    heading(figure, "Candidate less present mixture, held-out loss")
    for place, difference in enumerate(found.values()):
        color = colors[difference.verdict]
        axes.plot((difference.low, difference.high), (place,) * 2, color=color, linewidth=2.4)
        axes.scatter(difference.mean, place, s=36, color=color, zorder=3)
        seeds_S = difference.per_seed
        axes.scatter(seeds_S, [place + 0.25] * len(seeds_S), s=12, color=INK, marker="|")
    for label, color in colors.items():
        axes.plot([], [], color=color, linewidth=2.4, label=label)
    axes.scatter([], [], s=12, color=INK, marker="|", label="one seed")
    axes.axvline(0.0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set_xlabel(f"nats per token, {confidence:.0%} intervals; left of 0 is better")
    figure.legend(loc="outside lower left", ncols=4)
    return figure
