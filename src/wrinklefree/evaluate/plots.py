"""The plots of a run. Every function returns a matplotlib figure; ``canvas.save_svg`` writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from wrinklefree.evaluate.canvas import (
    DENSE,
    DIFFUSION,
    GREEN,
    GREY,
    INK,
    LINE_STYLES,
    MODEL_COLORS,
    ORANGE,
    PALE,
    SERIES,
    TERNARY,
    heading,
    label_first_column,
    logarithmic,
    panel_grid,
    styled,
)
from wrinklefree.evaluate.curves import (
    curve,
    legend_of_lines,
    points,
    reach,
    reported,
    single_panels,
    stage_panels,
)
from wrinklefree.evaluate.history import History
from wrinklefree.evaluate.loss_noise import LossNoise, loss_noise
from wrinklefree.evaluate.scores import LABELS, DomainScore, ModelScore
from wrinklefree.evaluate.smoothing import downsample, moving_average

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WEIGHTED = "_weighted"
"""How the metric of a term ends that was multiplied by its weight."""


@styled
def held_out_loss(models: dict[str, ModelScore]) -> Figure:
    """Held-out loss of every model, a panel for the mixture and one for each domain.

    Bars of diffusion models are hatched: theirs is the NELBO, an upper bound.
    """
    from matplotlib.patches import Patch

    domains = list(dict.fromkeys(name for model in models.values() for name in model.domains))
    columns = min(3, len(domains) + 1)
    size = 3.4, 0.75 + 0.26 * len(models)
    figure, grid = panel_grid(len(domains) + 1, columns, size, (0.9, 0.9), sharex=True, sharey=True)
    heading(figure, "Held-out loss of every model")
    for panel, axes in enumerate(grid):
        axes.set_title(domains[panel - 1] if panel else "whole mixture")
        scores = {
            name: model.domains.get(domains[panel - 1]) if panel else model.overall
            for name, model in models.items()
        }
        for position, (name, found) in enumerate(scores.items()):
            score = found.score if isinstance(found, DomainScore) else found
            if score is not None:
                _bar(axes, position, score.loss, score.loss_standard_error, name, models[name])
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
            Patch(facecolor=DENSE, label="dense"),
            Patch(facecolor=TERNARY, label="ternary"),
            Patch(
                facecolor="white",
                edgecolor=DIFFUSION,
                hatch="////",
                label="ternary diffusion (bound)",
            ),
        ],
        loc="outside lower left",
        ncols=3,
    )
    return figure


@styled
def training_loss(histories: dict[str, History]) -> Figure:
    """Training loss over tokens, a panel per stage; below it λ and the learning rate.

    The thin line is the loss of single steps, the thick one its moving average. Panels have their
    own vertical axes: the losses of an autoregressive and of a diffusion model are different
    quantities. The learning rate is drawn as a share of its peak.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure, loss_row, strength_row = stage_panels(histories, "Training loss of every stage")
    drawn = zip(loss_row, strength_row, histories.items(), strict=True)
    for loss, strength, (name, history) in drawn:
        curve(loss, history, "train/loss", MODEL_COLORS.get(name, GREY))
        if history.reports("train/lambda"):
            strength.fill_between(
                *points(history, "train/lambda"), color=ORANGE, alpha=0.35, linewidth=0
            )
            strength.plot(*points(history, "train/lambda"), color=ORANGE, linewidth=1.4)
        tokens, rates = points(history, "train/learning_rate")
        peak = max(rates, default=0.0)
        if peak > 0.0:
            strength.plot(tokens, [rate / peak for rate in rates], color=INK, linewidth=1.0)
        quantized = "" if history.reports("train/lambda") else "not quantized, "
        strength.set_title(f"{quantized}peak rate {peak:.3g}", fontweight="normal", fontsize=8)
        strength.set_ylim(0.0, 1.08)
        strength.set_yticks([0.0, 1.0])
        strength.set_xlabel("training tokens")
    label_first_column(loss_row, "loss (nats per token)")
    label_first_column(strength_row, "λ, rate")
    figure.legend(
        handles=[
            Patch(facecolor=ORANGE, alpha=0.5, label="λ, strength of quantization"),
            Line2D([], [], color=INK, label="learning rate, as a share of its peak"),
        ],
        loc="outside lower left",
        ncols=2,
    )
    return figure


@styled
def loss_terms(histories: dict[str, History]) -> Figure:
    """What each term adds to the loss of a stage that has several, times its weight, over tokens.

    Terms that are 0 throughout are left out.
    """
    several = {name: terms for name, found in histories.items() if (terms := _terms(found))}
    figure, grid = single_panels(
        {name: histories[name] for name in several},
        "Terms of the loss, times their weights",
        "every loss is of one term",
    )
    colors: dict[str, str] = {}
    for axes, (stage, terms) in zip(grid, several.items(), strict=True):
        for term in terms:
            color = colors.setdefault(_named(term), SERIES[len(colors) % len(SERIES)])
            curve(axes, histories[stage], term, color)
        logarithmic(axes)
    if several:
        label_first_column(grid, "nats per token")
        legend_of_lines(figure, {name: {"color": color} for name, color in colors.items()})
    return figure


def _terms(history: History) -> list[str]:
    """Metrics of the weighted terms of a loss that has more than one."""
    found = [
        name
        for name, values in history.metrics.items()
        if name.endswith(_WEIGHTED) and any(value > 0.0 for value in values)
    ]
    return found if len(found) > 1 else []


def _named(metric: str) -> str:
    return metric.rpartition("/")[2].removesuffix(_WEIGHTED).replace("_", " ")


@styled
def gradient_norms(histories: dict[str, History]) -> Figure:
    """Gradient norm before and after clipping, ZClip's running mean, and the clipped steps."""
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.lines import Line2D

    figure, norm_row, clip_row = stage_panels(histories, "Gradient norms and clipping")
    for norms, clips, (name, history) in zip(norm_row, clip_row, histories.items(), strict=True):
        color = MODEL_COLORS.get(name, GREY)
        norms.plot(*points(history, "train/grad_norm_clipped"), color=color, linewidth=0.9)
        norms.plot(*points(history, "train/zclip_ema_mean"), color=ORANGE, linewidth=1.6)
        logarithmic(norms)
        raw, flags = history.series("train/grad_norm_raw"), history.series("train/grad_clipped")
        steps = zip(history.tokens, raw, flags, strict=True)
        before = [(tokens, norm) for tokens, norm, flag in steps if flag > 0.0]
        clipped = [tokens for tokens, _ in before]
        norms.plot(clipped, [norm for _, norm in before], "o", color=GREEN, markersize=3.0)
        clips.vlines(clipped, 0.0, 1.0, color=GREEN, linewidth=0.7)
        clips.set_ylim(0.0, 1.0)
        clips.set_yticks([])
        clips.grid(visible=False)
        clips.set_xlabel("training tokens")
        share = len(clipped) / len(history.steps)
        clips.set_title(
            f"steps clipped: {len(clipped)} ({share:.1%})", fontweight="normal", fontsize=8
        )
    label_first_column(norm_row, "gradient norm")
    handles: list[Any] = [
        tuple(Line2D([], [], color=color) for color in (DENSE, TERNARY, DIFFUSION)),
        Line2D([], [], color=GREEN, marker="o", linewidth=0),
        Line2D([], [], color=ORANGE),
    ]
    figure.legend(
        handles,
        ["of the update", "before it was clipped", "ZClip's mean"],
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0.0)},
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
def domain_loss(histories: dict[str, History]) -> Figure:
    """Training loss of each domain over tokens, moving averages, a panel for every stage.

    Panels have their own vertical axes, as those of :func:`training_loss`.
    """
    histories = {name: history for name, history in histories.items() if history.domains()}
    figure, grid = single_panels(
        histories, "Training loss of every domain", "no stage says the losses of domains"
    )
    domains = sorted({domain for history in histories.values() for domain in history.domains()})
    lines: dict[str, dict[str, Any]] = {
        domain: {
            "color": SERIES[index % len(SERIES)],
            "linestyle": LINE_STYLES[index // len(SERIES) % len(LINE_STYLES)],
        }
        for index, domain in enumerate(domains)
    }
    for axes, history in zip(grid, histories.values(), strict=True):
        for domain, line in lines.items():
            tokens, values = reported(history, f"train/loss/{domain}")
            if tokens:
                smooth = moving_average(values, reach(len(values)))
                axes.plot(*downsample(tokens, smooth), linewidth=1.4, **line)
    if histories:
        label_first_column(grid, "loss (nats per token)")
        legend_of_lines(figure, lines)
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
    if (share := noise.composition_share) is not None:
        part = f"{share:.0%}" if share < 1.0 else "all"
        steps.set_title(f"{part} from the shares of domains", fontweight="normal", fontsize=8)


def _bar(
    axes: Axes, position: int, loss: float, error: float | None, name: str, model: ModelScore
) -> None:
    bound, color = model.kind == "block_diffusion", MODEL_COLORS.get(name, GREY)
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
