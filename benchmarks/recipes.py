"""Held-out loss of several runs over their training tokens and minutes, in one plot and one table.

Every run is a clone in which a recipe was run to the end of its distillation::

    python benchmarks/recipes.py layers=../layers bitdistill=../bitdistill --output recipes.svg

A run begins with what rounding leaves, and layers that were trained alone count with every token
that they saw. Minutes are those of the stages' own records, spread evenly over a stage's steps:
they compare only where nothing else ran and no stage was resumed. Losses of a training are of the
held-out rows that it looked at, those of ``subln`` of others. With ``--rows 12`` the distilled
students are measured on so many held-out rows of each domain, and what is left of their gaps to the
dense model is compared. Without runs nothing is drawn.
"""

from __future__ import annotations

import argparse
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from _timing import print_header, require

from wrinklefree.evaluate.canvas import GREY, SERIES, heading, panels, save_svg, styled, tokens_axis
from wrinklefree.evaluate.history import read_history
from wrinklefree.mixture.loader import HeldOutData
from wrinklefree.mixture.rows import read_mixture
from wrinklefree.models.folder import load_model
from wrinklefree.models.settings import SublnSettings
from wrinklefree.research.control import Scores, compare
from wrinklefree.research.measure import measure_held_out, target_shares
from wrinklefree.research.settings import OVERALL, MeasureSettings
from wrinklefree.tracking.artifact import read_manifest
from wrinklefree.tracking.provenance import read_provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAININGS = ("stage2", "distill/ar")
CONFIDENCE, DRAWS = 0.95, 10_000


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


def measured(run: Path, model: str, rows: int) -> Scores:
    held_out = HeldOutData(run / "data/mixture")
    return measure_held_out(
        load_model(run / "models" / model)[0], held_out, MeasureSettings(rows_per_domain=rows)
    )


def print_gaps(runs: dict[str, Path], rows: int) -> None:
    """Every run's distilled student less the dense model, and over that of the last run.

    Intervals of a ratio are percentiles over documents that are drawn again in each domain.
    """
    first = next(iter(runs.values()))
    mixture = read_mixture(first / "data/mixture")
    shares = target_shares(None, {domain.name: domain.weight for domain in mixture.domains})
    dense = measured(first, "base", rows)
    students = {name: measured(run, TRAININGS[-1], rows) for name, run in runs.items()}
    generator, drawn = np.random.default_rng(0), {name: np.zeros(DRAWS) for name in runs}
    for domain, share in shares.items():
        tokens_N = np.array(dense[domain].documents.tokens)
        count_KN = generator.multinomial(
            len(tokens_N), np.full(len(tokens_N), 1 / len(tokens_N)), DRAWS
        )
        for name, scores in students.items():
            nats_N = np.subtract(scores[domain].documents.nats, dense[domain].documents.nats)
            drawn[name] += share * (count_KN @ nats_N) / (count_KN @ tokens_N)
    for name, scores in students.items():
        found = compare(dense, scores, shares, CONFIDENCE)
        gap, loss = found["differences"][OVERALL], found["losses"][OVERALL]
        of_last = np.quantile(drawn[name] / drawn[list(runs)[-1]], (0.5, 0.025, 0.975))
        print(
            f"{name:<12} {loss['ternary']:.3f}, dense {loss['dense']:.3f}: {gap['mean']:+.3f}"
            f" ({gap['low']:.3f} to {gap['high']:.3f}), of the last one's"
            f" {of_last[0]:.3f} ({of_last[1]:.3f} to {of_last[2]:.3f})"
        )


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
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("nats per token")
    axes[1].legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="NAME=FOLDER")
    parser.add_argument("--output", type=Path, default=Path("recipes.svg"))
    parser.add_argument("--rows", type=int, help="held-out rows of each domain for the gaps")
    arguments = parser.parse_args()
    print_header("recipes by tokens and minutes")
    if not arguments.runs:
        print("no NAME=FOLDER was given, nothing drawn")
        return
    folders = {name: Path(run) for name, _, run in (r.partition("=") for r in arguments.runs)}
    runs, dense = {}, 0.0
    for name, folder in folders.items():
        runs[name] = points_of(folder)
        own = read_manifest(folder / "models" / "subln").facts["loss_before"]
        require(dense in (0.0, own), "runs of one dense model, measured on the same rows")
        dense = own
        for point in runs[name]:
            print(
                f"{name:<12} {point.tokens:>9,} tokens {point.minutes:6.1f} min {point.loss:7.3f}"
            )
    save_svg(plot(runs, dense), arguments.output)
    print(f"dense {dense:.3f}; {arguments.output} written")
    if arguments.rows:
        print_gaps(folders, arguments.rows)


if __name__ == "__main__":
    main()
