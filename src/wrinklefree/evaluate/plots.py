"""The plots of a run. Every function returns a matplotlib figure; ``canvas.save_svg`` writes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from wrinklefree.evaluate.canvas import (
    BLUE,
    GREY,
    INK,
    LINE_STYLES,
    ORANGE,
    PALE,
    SERIES,
    VERMILION,
    heading,
    label_first_column,
    panels,
    styled,
    tokens_axis,
)
from wrinklefree.evaluate.curves import curve, points, reach, reported, stage_panels
from wrinklefree.evaluate.history import History
from wrinklefree.evaluate.loss_noise import LossNoise, loss_noise
from wrinklefree.evaluate.scores import LABELS, DomainScore, ModelScore
from wrinklefree.evaluate.smoothing import downsample, moving_average

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wrinklefree.evaluate.ternary import LayerTernary

GAUSSIAN_ZERO_SHARE = math.erf(0.5 * math.sqrt(2.0 / math.pi) / math.sqrt(2.0))
"""Share of zero codes of normally distributed weights: P(|w| < mean|w| / 2), about 0.31."""


@styled
def held_out_loss(models: dict[str, ModelScore]) -> Figure:
    """Held-out loss of every model, a panel for the mixture and one for each domain.

    Bars of diffusion models are hatched: theirs is the NELBO, an upper bound.
    """
    from matplotlib.patches import Patch

    domains = list(dict.fromkeys(name for model in models.values() for name in model.domains))
    columns = min(3, len(domains) + 1)
    rows = math.ceil((len(domains) + 1) / columns)
    height = 0.9 + rows * (0.75 + 0.26 * len(models))
    figure, grid = panels(rows, columns, (3.4 * columns + 0.9, height), sharex=True, sharey=True)
    heading(figure, "Held-out loss of every model")
    for panel, axes in enumerate(grid):
        if panel > len(domains):
            axes.set_axis_off()
            continue
        axes.set_title(domains[panel - 1] if panel else "whole mixture")
        scores = {
            name: model.domains.get(domains[panel - 1]) if panel else model.overall
            for name, model in models.items()
        }
        for position, (name, found) in enumerate(scores.items()):
            score = found.score if isinstance(found, DomainScore) else found
            if score is not None:
                _bar(axes, position, score.loss, score.loss_standard_error, models[name])
        axes.set_yticks(range(len(models)), [LABELS.get(name, name) for name in models])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        if panel + columns > len(domains):
            axes.set_xlabel("loss (nats per token)")
            axes.tick_params(axis="x", labelbottom=True)
    grid[0].invert_yaxis()
    _widen_for_labels(grid[0], models)
    figure.legend(
        handles=[
            Patch(facecolor=INK, label="dense"),
            Patch(facecolor=BLUE, label="ternary"),
            Patch(
                facecolor="white", edgecolor=ORANGE, hatch="////", label="ternary diffusion (bound)"
            ),
        ],
        loc="outside lower left",
        ncols=3,
    )
    return figure


@styled
def training_loss(histories: dict[str, History]) -> Figure:
    """Training loss over tokens, a panel per stage, with the quantization strength below it.

    The thin line is the loss of single steps, the thick one its moving average. Panels have their
    own vertical axes: the losses of an autoregressive and of a diffusion model are different
    quantities.
    """
    figure, loss_row, strength_row = stage_panels(histories, "Training loss of every stage")
    for loss, strength, history in zip(loss_row, strength_row, histories.values(), strict=True):
        curve(loss, history, "train/loss", BLUE)
        if history.reports("train/lambda"):
            strength.fill_between(
                *points(history, "train/lambda"), color=ORANGE, alpha=0.35, linewidth=0
            )
            strength.plot(*points(history, "train/lambda"), color=ORANGE, linewidth=1.4)
        else:
            strength.text(
                0.5, 0.45, "not quantized", transform=strength.transAxes, ha="center", color=GREY
            )
        strength.set_ylim(0.0, 1.08)
        strength.set_yticks([0.0, 1.0])
        strength.set_xlabel("training tokens")
    label_first_column(loss_row, "loss (nats per token)")
    label_first_column(strength_row, "λ")
    return figure


@styled
def gradient_norms(histories: dict[str, History]) -> Figure:
    """Gradient norm before and after clipping, ZClip's running mean, and the clipped steps."""
    from matplotlib.lines import Line2D

    figure, norm_row, clip_row = stage_panels(histories, "Gradient norms and clipping")
    for norms, clips, history in zip(norm_row, clip_row, histories.values(), strict=True):
        for name, color, width in (
            ("train/grad_norm_raw", VERMILION, 0.9),
            ("train/grad_norm_clipped", BLUE, 0.9),
            ("train/zclip_ema_mean", INK, 1.4),
        ):
            norms.plot(*points(history, name), color=color, linewidth=width)
        norms.set_yscale("log")
        clipped = [
            tokens
            for tokens, flag in zip(
                history.tokens, history.series("train/grad_clipped"), strict=True
            )
            if flag > 0.0
        ]
        clips.vlines(clipped, 0.0, 1.0, color=VERMILION, linewidth=0.7)
        clips.set_ylim(0.0, 1.0)
        clips.set_yticks([])
        clips.grid(visible=False)
        clips.set_xlabel("training tokens")
        share = len(clipped) / len(history.steps)
        clips.set_title(
            f"steps clipped: {len(clipped)} ({share:.1%})", fontweight="normal", fontsize=8
        )
    label_first_column(norm_row, "gradient norm")
    figure.legend(
        handles=[
            Line2D([], [], color=VERMILION, label="before clipping"),
            Line2D([], [], color=BLUE, label="after clipping"),
            Line2D([], [], color=INK, label="ZClip's mean"),
        ],
        loc="outside lower left",
        ncols=3,
    )
    return figure


@styled
def loss_variance(histories: dict[str, History]) -> Figure:
    """Variance of row losses within and between domains, and below it that of step losses."""
    from matplotlib.patches import Patch

    figure, row_panels, step_panels = stage_panels(
        histories, "Variance of the training loss", heights=(2.2, 1.4)
    )
    for rows, steps, history in zip(row_panels, step_panels, histories.values(), strict=True):
        noise = loss_noise(history)
        if noise is None:
            rows.text(0.5, 0.5, "one step only", transform=rows.transAxes, ha="center", color=GREY)
        else:
            _draw_noise(rows, steps, noise)
        steps.set_xlabel("training tokens")
    label_first_column(row_panels, "of rows (nats²)")
    label_first_column(step_panels, "of steps (nats²)")
    figure.legend(
        handles=[
            Patch(facecolor=PALE, label="within domains"),
            Patch(facecolor=ORANGE, label="between domains"),
        ],
        loc="outside lower left",
        ncols=2,
    )
    return figure


@styled
def domain_loss(history: History, stage: str) -> Figure:
    """Training loss of each domain over tokens, moving averages, named at their ends."""
    figure, (axes,) = panels(1, 1, (8.0, 4.4))
    heading(figure, f"Training loss per domain: {LABELS.get(stage, stage)}")
    ends: list[tuple[float, str, str]] = []
    for index, domain in enumerate(history.domains()):
        tokens, values = reported(history, f"train/loss/{domain}")
        if not tokens:
            continue
        color = SERIES[index % len(SERIES)]
        style = LINE_STYLES[index // len(SERIES) % len(LINE_STYLES)]
        smooth = moving_average(values, reach(len(values)))
        axes.plot(*downsample(tokens, smooth), color=color, linestyle=style, linewidth=1.6)
        ends.append((smooth[-1], domain, color))
    axes.set_xlabel("training tokens")
    axes.set_ylabel("loss (nats per token)")
    axes.set_xlim(0, history.tokens[-1])
    tokens_axis(axes)
    _name_ends(axes, ends)
    return figure


@styled
def ternary_shares(layers: Sequence[LayerTernary], model: str) -> Figure:
    """Shares of the codes 0, -1 and +1 over depth, a panel for each kind of linear layer."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    kinds = list(dict.fromkeys(layer.kind for layer in layers))
    columns = min(4, len(kinds))
    rows = math.ceil(len(kinds) / columns)
    size = (2.5 * columns + 0.6, 0.9 + 1.9 * rows)
    figure, grid = panels(rows, columns, size, sharex=True, sharey=True)
    heading(figure, f"Ternary codes per layer: {LABELS.get(model, model)}")
    colors = {"zero": PALE, "minus": ORANGE, "plus": BLUE}
    for index, axes in enumerate(grid):
        if index >= len(kinds):
            axes.set_axis_off()
            continue
        axes.set_title(kinds[index])
        chosen = [layer for layer in layers if layer.kind == kinds[index]]
        floor = [0.0] * len(chosen)
        for share, color in colors.items():
            heights = [getattr(layer, share) for layer in chosen]
            depths = [layer.depth for layer in chosen]
            axes.bar(depths, heights, width=0.86, bottom=floor, color=color)
            floor = [low + height for low, height in zip(floor, heights, strict=True)]
        axes.axhline(GAUSSIAN_ZERO_SHARE, color=INK, linewidth=1.0, linestyle="--")
        axes.set_ylim(0.0, 1.0)
        axes.grid(visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if index + columns >= len(kinds):
            axes.set_xlabel("decoder layer")
            axes.tick_params(axis="x", labelbottom=True)
        if index % columns == 0:
            axes.set_ylabel("share of weights")
    named = {"zero": "code 0", "minus": "code −1", "plus": "code +1"}
    handles = [Patch(facecolor=colors[share], label=label) for share, label in named.items()]
    line = Line2D([], [], color=INK, linestyle="--", label="zeros of Gaussian weights (31 %)")
    figure.legend(handles=[*handles, line], loc="outside lower left", ncols=4)
    return figure


def _draw_noise(rows: Axes, steps: Axes, noise: LossNoise) -> None:
    for axes, lower, whole in (
        (rows, noise.between, noise.within + noise.between),
        (steps, noise.composition, np.maximum(noise.steps, noise.composition)),
    ):
        tokens = noise.tokens.tolist()
        axes.fill_between(*downsample(tokens, whole.tolist()), color=PALE, linewidth=0)
        axes.fill_between(*downsample(tokens, lower.tolist()), color=ORANGE, linewidth=0)
        axes.set_ylim(bottom=0.0)
    share = noise.composition_share
    if share is not None:
        steps.set_title(f"{share:.0%} from the shares of domains", fontweight="normal", fontsize=8)


def _name_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write names to the right of the ends of lines, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = 0.055
    place = -math.inf
    for value, name, color in sorted(ends):
        place = max((value - low) / (high - low), place + gap)
        axes.text(1.015, place, name, transform=axes.transAxes, color=color, va="center")


def _bar(axes: Axes, position: int, loss: float, error: float | None, model: ModelScore) -> None:
    bound = model.kind == "block_diffusion"
    color = ORANGE if bound else BLUE if model.quantized else INK
    axes.barh(
        position,
        loss,
        height=0.68,
        color="white" if bound else color,
        edgecolor=color,
        hatch="////" if bound else None,
    )
    if error is not None:
        axes.plot([loss - error, loss + error], [position] * 2, color=GREY, linewidth=1.2)
    label = f"{'≤ ' if bound else ''}{loss:.2f}"
    axes.annotate(
        label,
        (loss + (error or 0.0), position),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
    )


def _widen_for_labels(axes: Axes, models: dict[str, ModelScore]) -> None:
    highest = max(
        domain.score.loss + (domain.score.loss_standard_error or 0.0)
        for model in models.values()
        for domain in model.domains.values()
    )
    axes.set_xlim(0.0, 1.24 * highest)
