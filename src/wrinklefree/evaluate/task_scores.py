"""How benchmarks were answered, and the table of it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from wrinklefree.evaluate.columns import ABSENT, Column


@dataclass(frozen=True)
class TaskScore:
    """Shares of right answers, each with its standard error over questions."""

    questions: int
    acc: float
    acc_standard_error: float | None
    acc_norm: float | None = None
    """Where the likeliest continuation by its length is chosen; None where that is not asked."""
    acc_norm_standard_error: float | None = None

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


def task_columns(scores: Mapping[str, dict[str, TaskScore]]) -> list[Column]:
    """A column for each task, a row for each model: right answers in per cent, ± standard error.

    By the length of choices where that is asked, as others report it.
    """
    tasks = sorted({name for found in scores.values() for name in found})
    return [[task, *(_share(found.get(task)) for found in scores.values())] for task in tasks]


def _share(score: TaskScore | None) -> str:
    if score is None:
        return ABSENT
    share, error = score.acc, score.acc_standard_error
    if score.acc_norm is not None:
        share, error = score.acc_norm, score.acc_norm_standard_error
    return f"{100 * share:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")
