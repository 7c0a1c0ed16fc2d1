"""The table and the plots of the ``world_model`` stage. Imports no torch.

Shapes: N clips, F frames, P pixels of a frame's width and height.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from wrinklefree.evaluate.canvas import BLUE, GREY, INK, VERMILION, heading, panels, styled
from wrinklefree.evaluate.columns import ABSENT, TERMINAL_WIDTH, plain_rows
from wrinklefree.evaluate.smoothing import moving_average

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {
    "dense": "dense",
    "ternary": "ternary",
    "copied": "last given frame",
    "tokenized": "tokens of the truth",
}
_CLIPS = 3
"""Shown of those that were held out."""


def table_text(content: Mapping[str, Any]) -> str:
    """What the stage says on the terminal, from ``world_model.json``."""
    found = {**content["models"], **{name: content[name] for name in ("copied", "tokenized")}}
    sizes = content["sizes"]
    rows = [["prediction", "loss", *(f"right of {size}" for size in sizes), "pixel error"]]
    for name, score in found.items():
        loss = f"{score['loss']:.3f}" if "loss" in score else ABSENT
        right = [f"{100 * share:.1f} %" for share in score["right"]]
        rows.append([LABELS[name], loss, *right, f"{score['error']:.4f}"])
    begun = ", ".join(
        f"{name} {score['first_loss']:.2f}" for name, score in content["models"].items()
    )
    health = ", ".join(
        f"{name} {score['healthy_norms']:.0%}" for name, score in content["models"].items()
    )
    about = (
        "Held-out clips. Loss: of masked tokens, nats per token. Right: share of words, for each"
        " vocabulary. Pixel error: root of the mean square over all predicted frames, white is 1."
        f" Losses began at {begun}; a guess costs {content['initial_loss']:.2f}. Steps with a"
        f" healthy gradient norm: {health}. Each model was trained once."
    )
    return "\n".join([*plain_rows(rows), "", fill(about, TERMINAL_WIDTH), ""])


@styled
def losses_plot(histories: Mapping[str, Sequence[Mapping[str, float]]], initial: float) -> Figure:
    """Training loss and gradient norm over steps, of both models."""
    figure, (loss, norm) = panels(1, 2, (8.0, 3.4))
    heading(figure, "World model: training")
    for (name, history), color in zip(histories.items(), (INK, BLUE), strict=True):
        taken = [entry for entry in history if "train/loss" in entry]
        steps = [entry["step"] for entry in taken]
        for axes, key in ((loss, "train/loss"), (norm, "train/grad_norm_raw")):
            values = [entry[key] for entry in taken]
            axes.plot(steps, values, color=color, linewidth=0.6, alpha=0.3)
            smooth = moving_average(values, len(values) // 40)
            axes.plot(steps, smooth, color=color, label=LABELS[name])
    loss.axhline(initial, color=VERMILION, linewidth=1.0, linestyle=":", label="a guess")
    loss.set_ylabel("masked tokens (nats per token)")
    loss.set_ylim(bottom=0.0)
    norm.set_ylabel("gradient norm before clipping")
    norm.set_yscale("log")
    for axes in (loss, norm):
        axes.set_xlabel("step")
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower left", ncols=3)
    return figure


@styled
def frames_plot(true: np.ndarray, found: Mapping[str, np.ndarray], given: int) -> Figure:
    """The first held-out clips: a line of frames for the truth, and one for each model.

    The last given frame is the first one. Frames are float32 [N, F, P, P].
    """
    lines = {"true": true, **{name: found[name] for name in ("dense", "ternary")}}
    clips, columns = min(_CLIPS, len(true)), true.shape[1] - given + 1
    size = (0.9 + 0.85 * columns, 0.7 + 0.9 * clips * len(lines))
    figure, grid = panels(clips * len(lines), columns, size)
    heading(figure, "Predicted frames")
    for index, axes in enumerate(grid):
        row, column = divmod(index, columns)
        clip, line = divmod(row, len(lines))
        name = list(lines)[line]
        frame = lines[name][clip, given - 1 + column]
        axes.imshow(frame, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set(visible=True, color=GREY if column else VERMILION)
        if column == 0:
            axes.set_ylabel(name)
        if row == 0:
            axes.set_title(f"{column} ahead" if column else "given")
    return figure
