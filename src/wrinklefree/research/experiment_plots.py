"""The plots of the experiments. Every function returns a matplotlib figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wrinklefree.evaluate.canvas import (
    GREEN,
    GREY,
    INK,
    LINE_STYLES,
    SERIES,
    VERMILION,
    heading,
    panels,
    styled,
    tokens_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = list[tuple[float, float]]
"""(tokens, held-out loss) by rising tokens."""
_COLORS = {
    "better": GREEN,
    "worse": VERMILION,
    "undecided": GREY,
    "confirmed": GREEN,
    "refuted": VERMILION,
}


@styled
def experiment_plot(
    experiment: dict[str, Any], curves: dict[str, list[Curve]], confidence: float
) -> Figure:
    """Differences of all variants with their intervals, and held-out curves of the finalists.

    Parameters
    ----------
    experiment : ``experiments.<name>`` of ``experiments.json``.
    curves : by family, one of each seed.
    """
    compared = {f: v["difference"] for f, v in experiment["variants"].items() if v["difference"]}
    height = max(3.2, 1.6 + 0.3 * len(compared))
    figure, (left, right) = panels(1, 2, (9.6, height))
    heading(figure, experiment["question"])
    names = []
    for place, (family, difference) in enumerate(compared.items()):
        color = _COLORS[difference["verdict"]]
        left.plot((difference["low"], difference["high"]), (place,) * 2, color=color, linewidth=2.2)
        face = color if difference["seeds"] > 1 else "white"
        left.scatter(difference["mean"], place, s=34, facecolor=face, edgecolor=color, zorder=3)
        against = difference["against"]
        plain = against == experiment["reference"]
        names.append(_spoken(family if plain else f"{family}\n– {against}"))
    _differences_axis(left, names, experiment["reference"], confidence)
    for place, (family, seeds) in enumerate(curves.items()):
        color = SERIES[place % len(SERIES)]
        style = LINE_STYLES[place // len(SERIES) % len(LINE_STYLES)]
        for number, curve in enumerate(seeds):
            label = _spoken(family) if number == 0 else None
            right.plot(*zip(*curve, strict=True), style, color=color, linewidth=1.2, label=label)
    right.set_title("Finalists, a line for each seed")
    right.set_ylabel("held-out loss (nats per token)")
    right.set_xlabel("training tokens")
    tokens_axis(right)
    right.legend()
    return figure


def _differences_axis(axes: Axes, names: list[str], reference: str, confidence: float) -> None:
    for label in ("better", "undecided", "worse"):
        axes.plot([], [], color=_COLORS[label], linewidth=2.2, label=label)
    axes.scatter([], [], s=34, facecolor="white", edgecolor=INK, label="one seed")
    axes.axvline(0.0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.set_title(f"Loss less that of {_spoken(reference)}")
    axes.set_xlabel(f"nats per token, {confidence:.0%} intervals; left of 0 is better")
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=4)


@styled
def claims_plot(claims: list[dict[str, Any]], confidence: float) -> Figure:
    """What documents claim, and what was measured, as relative changes in percent."""
    figure, (axes,) = panels(1, 1, (7.0, 1.8 + 0.5 * max(len(claims), 1)))
    heading(figure, "What the seeds claim, and what was measured")
    for place, claim in enumerate(claims):
        axes.scatter(100 * claim["claimed"], place - 0.18, s=36, color=INK, marker="D", zorder=3)
        if claim["mean"] is None:
            continue
        color = _COLORS[claim["verdict"]]
        ends = 100 * claim["low"], 100 * claim["high"]
        axes.plot(ends, (place + 0.18,) * 2, color=color, linewidth=2.4)
        axes.scatter(100 * claim["mean"], place + 0.18, s=36, color=color, zorder=3)
    for label in ("confirmed", "undecided", "refuted"):
        axes.plot([], [], color=_COLORS[label], linewidth=2.4, label=label)
    axes.scatter([], [], s=36, color=INK, marker="D", label="claimed")
    axes.axvline(0.0, color=INK, linewidth=0.8)
    names = [_spoken(f"{claim['family']}\n{claim['measure']}") for claim in claims]
    axes.set_yticks(range(len(claims)), names)
    axes.set_ylim(max(len(claims), 1) - 0.5, -0.5)
    axes.set_xlim(right=min(axes.get_xlim()[1], 200.0))
    over = "over seeds, of the loss over documents too"
    axes.set_xlabel(f"relative change (%), {confidence:.0%} intervals {over}")
    figure.legend(loc="outside lower left", ncols=4)
    return figure


def _spoken(name: str) -> str:
    return name.replace("_", " ")
