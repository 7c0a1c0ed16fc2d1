"""Whom a training tells what happens."""

from __future__ import annotations

from typing import Protocol

from wrinklefree.tracking.terminal import say


class Journal(Protocol):
    """Where lines and metrics go."""

    @property
    def label(self) -> str:
        """What the training is called."""
        ...

    def say(self, text: str) -> None:
        """A line for a person."""
        ...

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics after ``step`` steps."""
        ...


class Printed:
    """Lines on standard error; metrics are in the training's history, and nowhere else."""

    label = "training"

    def say(self, text: str) -> None:
        """Print a line."""
        say(text)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Nothing: see ``Trainer.state.history``."""


class Silent:
    """Of a process that has others beside it, of which one tells for all."""

    def __init__(self, label: str) -> None:
        self.label = label

    def say(self, text: str) -> None:
        """Nothing."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Nothing."""
