"""The plots of the report. Every function returns a figure; ``canvas.save_svg`` writes it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from wrinklefree.evaluate.canvas import (
    BLUE,
    GREY,
    INK,
    PALE,
    SERIES,
    VERMILION,
    heading,
    panel_grid,
    panels,
    styled,
)
from wrinklefree.evaluate.data_report.report import DomainReport, SourceReport, total
from wrinklefree.evaluate.data_report.tables import STAGES, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEAST_LABELLED = 0.0001


@styled
def document_lengths(domains: dict[str, DomainReport], sequence_length: int) -> Figure:
    """Shares of documents and of tokens over the length of documents, a panel per domain."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, MultipleLocator, PercentFormatter

    used = [np.flatnonzero(domain.lengths.documents) for domain in domains.values()]
    first = min((bins[0] for bins in used if len(bins)), default=0)
    last = max((bins[-1] for bins in used if len(bins)), default=0)
    columns = min(3, len(domains))
    figure, grid = panel_grid(
        len(domains), columns, (3.1, 1.9), (0.5, 0.9), sharex=True, sharey=True
    )
    heading(figure, "Lengths of training documents")
    for index, (axes, (name, domain)) in enumerate(zip(grid, domains.items(), strict=True)):
        axes.set_title(name)
        bins = np.arange(first, last + 1)
        for counts, left, color in (
            (domain.lengths.documents, 0.08, PALE),
            (domain.lengths.tokens, 0.5, BLUE),
        ):
            shares = counts[first : last + 1] / max(counts.sum(), 1)
            axes.bar(bins + left, shares, width=0.42, align="edge", color=color)
        axes.axvline(math.log2(sequence_length), color=INK, linewidth=1.0, linestyle="--")
        axes.set_xlim(first, last + 1)
        axes.grid(visible=False, axis="x")
        axes.xaxis.set_major_locator(MultipleLocator(max(1, math.ceil((last + 1 - first) / 6))))
        axes.xaxis.set_major_formatter(FuncFormatter(_power_of_two))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        if index + columns >= len(domains):
            axes.set_xlabel("tokens of the document")
            axes.tick_params(axis="x", labelbottom=True)
    figure.legend(
        handles=[
            Patch(facecolor=PALE, label="share of the documents"),
            Patch(facecolor=BLUE, label="share of the tokens"),
            Line2D([], [], color=INK, linestyle="--", label="length of a packed row"),
        ],
        loc="outside lower left",
        ncols=3,
    )
    return figure


def _power_of_two(power: float, _: int) -> str:
    """Such as 8, 512, 4 k and 1 M: k is 1024."""
    unit, rest = divmod(int(power), 10)
    return f"{2**rest} {' kMGT'[unit]}".strip()


@styled
def shares(domains: dict[str, DomainReport]) -> Figure:
    """Shares of the training tokens: asked for, of a long run, and in batches that were read."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import PercentFormatter

    figure, (axes,) = panels(1, 1, (8.0, 1.4 + 0.42 * len(domains)))
    heading(figure, "Shares of the training tokens")
    for position, domain in enumerate(domains.values()):
        share = domain.share
        axes.barh(position, share.ordered, height=0.62, color=BLUE)
        axes.plot([share.asked] * 2, [position - 0.42, position + 0.42], color=INK, linewidth=1.6)
        axes.plot(share.read, position, color=VERMILION, marker="o", markersize=4.5)
        difference = f"{100 * (share.ordered - share.asked):+.3f}".replace("-", "−")
        axes.annotate(
            f"{percent(share.ordered)} ({difference})",
            (max(share.ordered, share.asked, share.read), position),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(domains)), list(domains))
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    highest = max(max(d.share.ordered, d.share.asked, d.share.read) for d in domains.values())
    axes.set_xlim(0.0, 1.24 * highest)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set_xlabel("share of the tokens (difference from what was asked, in points)")
    figure.legend(
        handles=[
            Line2D([], [], color=INK, linewidth=1.6, label="asked"),
            Patch(facecolor=BLUE, label="in a long run"),
            Line2D([], [], color=VERMILION, marker="o", linestyle="", label="in batches read"),
        ],
        loc="outside lower left",
        ncols=3,
    )
    return figure


@styled
def dropped(sources: dict[str, SourceReport]) -> Figure:
    """What was left out of every source by reason: of its documents, and of its bytes."""
    from matplotlib.patches import Patch

    counted = {unit: _dropped_shares(sources, unit) for unit in ("documents", "bytes")}
    reasons = list(dict.fromkeys(key for shares in counted.values() for key in shares))
    height = 1.5 + 0.34 * len(sources) + 0.2 * math.ceil(len(reasons) / 2)
    figure, grid = panels(1, 2, (8.6, height), sharey=True)
    heading(figure, "Text left out, by reason")
    colors = {reason: SERIES[index % len(SERIES)] for index, reason in enumerate(reasons)}
    for axes, (unit, shares) in zip(grid, counted.items(), strict=True):
        _stack(axes, shares, colors, len(sources))
        axes.set_title(unit)
        axes.set_xlabel(f"share of the {unit} that were found")
    grid[0].set_yticks(range(len(sources)), list(sources))
    grid[0].invert_yaxis()
    if reasons:
        handles = [
            Patch(facecolor=colors[stage, reason], label=f"{stage}: {reason.replace('_', ' ')}")
            for stage, reason in reasons
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=2)
    return figure


Reason = tuple[str, str]
"""Stage, and why it left something out."""


def _dropped_shares(sources: dict[str, SourceReport], unit: str) -> dict[Reason, list[float]]:
    """By reason, of every source the part of all it had that was left out."""
    shares: dict[Reason, list[float]] = {}
    for stage in STAGES:
        reasons = sorted({reason for source in sources.values() for reason in source.drops[stage]})
        for reason in reasons:
            counts = [s.drops[stage].get(reason, {}).get(unit, 0) for s in sources.values()]
            if any(counts):
                totals = [_found(source, unit) for source in sources.values()]
                shares[stage, reason] = [c / max(t, 1) for c, t in zip(counts, totals, strict=True)]
    return shares


def _found(source: SourceReport, unit: str) -> int:
    """What is left of a source and what was left out."""
    lost = sum(counts.get(unit, 0) for stage in source.drops.values() for counts in stage.values())
    return getattr(total(source.splits.values()), unit) + lost


def _stack(
    axes: Axes, shares: dict[Reason, list[float]], colors: dict[Reason, str], sources: int
) -> None:
    from matplotlib.ticker import PercentFormatter

    ends = [0.0] * sources
    for reason, values in shares.items():
        axes.barh(range(sources), values, left=ends, height=0.62, color=colors[reason])
        ends = [end + value for end, value in zip(ends, values, strict=True)]
    for position, end in enumerate(ends):
        label = "nothing" if not end else "< 0.01 %" if end < _LEAST_LABELLED else percent(end)
        axes.annotate(
            label,
            (end, position),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK if end else GREY,
        )
    axes.set_xlim(0.0, 1.35 * max(ends) or 1.0)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.locator_params(axis="x", nbins=5)
