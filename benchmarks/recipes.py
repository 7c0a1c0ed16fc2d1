"""Held-out loss of several runs over their training tokens and minutes, in one plot and one table.

Every run is a clone in which a recipe was run to the end of its distillation::

    python benchmarks/recipes.py layers=../layers bitdistill=../bitdistill --output recipes.svg

A run begins with what rounding leaves, and layers that were trained alone count with every token
that they saw. Minutes are those of the stages' own records, spread evenly over a stage's steps:
they compare only where nothing else ran and no stage was resumed. Losses of a training are of the
held-out rows that it looked at, those of ``subln`` of others. Without runs nothing is drawn.
"""

from __future__ import annotations

import argparse
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from _timing import print_header, require

from wrinklefree.evaluate.canvas import GREY, SERIES, heading, panels, save_svg, styled, tokens_axis
from wrinklefree.evaluate.history import read_history
from wrinklefree.models.settings import SublnSettings
from wrinklefree.tracking.artifact import read_manifest
from wrinklefree.tracking.provenance import read_provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAININGS = ("stage2", "distill/ar")


@dataclass(frozen=True)
class Point:
    """Where a run was, and its held-out loss there in nats per token."""

    tokens: int
    minutes: float
    loss: float


def minutes_of(run: Path, name: str) -> float:
    digest = read_manifest(run / "models" / name).digest
    record = read_provenance(run / "provenance" / "models" / f"{name}.json", digest)
    require(record is not None, f"a record of how {run / 'models' / name} came to be")
    assert record
    return record.seconds / 60


def points_of(run: Path) -> list[Point]:
    manifest = read_manifest(run / "models" / "subln")
    facts = manifest.facts
    chosen = SublnSettings.model_validate(manifest.settings["subln"]).reconstruct
    start = facts.get("loss_before_reconstruction", facts["loss_after_lambda1"])
    points = [Point(0, 0.0, start)]
    if reconstruction := facts.get("reconstruction"):
        tokens = reconstruction["tokens"] * chosen.epochs
        points += [Point(tokens, minutes_of(run, "subln"), facts["loss_after_lambda1"])]
    for name in TRAININGS:
        history = read_history(run / "models" / name)
        before, took = points[-1], minutes_of(run, name)
        for step, tokens, loss in zip(
            history.steps, history.tokens, history.series("held_out/loss"), strict=True
        ):
            if math.isfinite(loss):
                minutes = before.minutes + took * step / history.steps[-1]
                points.append(Point(before.tokens + tokens, minutes, loss))
    return points


@styled
def plot(runs: dict[str, list[Point]], dense: float) -> Figure:
    figure, axes = panels(1, 2, (7.2, 3.2), sharey=True)
    heading(figure, "Held-out loss of a ternary model by recipe")
    for (name, points), color in zip(runs.items(), itertools.cycle(SERIES), strict=False):
        losses = [point.loss for point in points]
        for one, places in zip(
            axes, ([p.tokens for p in points], [p.minutes for p in points]), strict=True
        ):
            one.plot(places, losses, "o-", color=color, markersize=3, linewidth=1.6, label=name)
    for one in axes:
        one.axhline(dense, color=GREY, linewidth=0.8, linestyle=":", label="dense")
        one.set_xlim(left=0)
    tokens_axis(axes[0])
    axes[0].set_xlabel("training tokens")
    axes[1].set_xlabel("minutes")
    axes[0].set_ylabel("nats per token")
    axes[1].legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="NAME=FOLDER")
    parser.add_argument("--output", type=Path, default=Path("recipes.svg"))
    arguments = parser.parse_args()
    print_header("recipes by tokens and minutes")
    if not arguments.runs:
        print("no NAME=FOLDER was given, nothing drawn")
        return
    runs, dense = {}, 0.0
    for run in arguments.runs:
        name, _, folder = run.partition("=")
        runs[name] = points_of(Path(folder))
        own = read_manifest(Path(folder) / "models" / "subln").facts["loss_before"]
        require(dense in (0.0, own), "runs of one dense model, measured on the same rows")
        dense = own
        for point in runs[name]:
            print(
                f"{name:<12} {point.tokens:>9,} tokens {point.minutes:6.1f} min {point.loss:7.3f}"
            )
    save_svg(plot(runs, dense), arguments.output)
    print(f"dense {dense:.3f}; {arguments.output} written")


if __name__ == "__main__":
    main()
