"""A stage that trains several models one after the other: each training is a part of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

from wrinklefree.tracking.runs import StageRun
from wrinklefree.tracking.stage import Stage


class _PartRun:
    """Metrics of one part in the run of its stage, under names of their own."""

    def __init__(self, run: StageRun, name: str) -> None:
        self._run, self._name = run, name.replace("-", "_")

    def log_metrics(self, step: int, metrics: dict[str, float]) -> None:
        named = {f"{self._name}/{name}": value for name, value in metrics.items()}
        self._run.log_metrics(step, named)


def part_of(stage: Stage, name: str, announced: str, folder: Path | None = None) -> Stage:
    """``stage`` with a folder, checkpoints and metrics for the part ``name`` alone; says it.

    The folder is a new one in the stage's, unless one is given.
    """
    part = replace(
        stage,
        folder=folder or stage.folder / name,
        work=stage.work / name,
        run=cast(StageRun, _PartRun(stage.run, name)),
    )
    if not folder:
        part.folder.mkdir()
    stage.terminal.say(f"{stage.terminal.label}: {announced}")
    return part
