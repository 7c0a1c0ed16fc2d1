"""How benchmarks were answered, and the table of it. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from wrinklefree.evaluate.columns import ABSENT, Column

TASK_ROWS = ("solved examples", "in training text", "without beginning")
"""What :func:`task_columns` says of a task below the models."""


@dataclass(frozen=True)
class Answer:
    """What a model holds of a question's choices, or of its only continuation."""

    log_likelihoods: list[float]
    """In nats, in the order of ``<task>.jsonl``."""
    right: bool
    right_by_length: bool | None = None
    """None where that is not asked."""


@dataclass(frozen=True)
class TaskScore:
    """Shares of right answers, each with its standard error over questions."""

    questions: int
    few_shot: int
    """Solved examples before each question."""
    contaminated: int
    """Questions that stand in the training text."""
    acc: float
    acc_standard_error: float | None
    acc_norm: float | None = None
    """Where the likeliest continuation by its length is chosen; None where that is not asked."""
    acc_norm_standard_error: float | None = None
    cut: int = 0
    """Questions longer than the model's positions, of which it read the end alone."""
    answers: list[Answer] = field(default_factory=list, repr=False)

    def as_json(self) -> dict[str, Any]:
        """All of it but the answers."""
        return {name: value for name, value in asdict(self).items() if name != "answers"}


def answers_jsonl(scores: Mapping[str, dict[str, TaskScore]]) -> str:
    """A line of JSON for every answer: ``model``, ``task``, ``question`` (from 0), the answer."""
    return "".join(
        json.dumps({"model": model, "task": task, "question": number, **asdict(answer)}) + "\n"
        for model, found in scores.items()
        for task, score in found.items()
        for number, answer in enumerate(score.answers)
    )


def task_columns(scores: Mapping[str, dict[str, TaskScore]]) -> list[Column]:
    """A column for each task, a row for each model: right answers in per cent, ± standard error.

    By the length of choices where that is asked, as others report it. Then :data:`TASK_ROWS`.
    """
    tasks = {name: score for found in scores.values() for name, score in found.items()}
    return [
        [
            name,
            *(_share(found.get(name)) for found in scores.values()),
            str(task.few_shot),
            f"{task.contaminated} of {task.questions}",
            f"{task.cut} of {task.questions}",
        ]
        for name, task in sorted(tasks.items())
    ]


def _share(score: TaskScore | None) -> str:
    if score is None:
        return ABSENT
    share, error = score.acc, score.acc_standard_error
    if score.acc_norm is not None:
        share, error = score.acc_norm, score.acc_norm_standard_error
    return f"{100 * share:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")
