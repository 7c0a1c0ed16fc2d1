"""``mixture``: tokens to training rows, and which of them a training reads."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from wrinklefree.schema.section import (
    LONGEST_ROW,
    Name,
    NonNegativeFloat,
    Rows,
    Section,
    StepsOrZero,
)

WEIGHT_TOLERANCE = 1e-6


def _sum_to_one(weights: dict[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    if abs(total - 1.0) > WEIGHT_TOLERANCE:
        raise ValueError(f"weights sum to {total:.6g}, expected 1")
    return weights


Weights = Annotated[dict[Name, NonNegativeFloat], AfterValidator(_sum_to_one)]
"""Share of the training tokens per domain; they sum to 1."""


class MixtureSettings(Section):
    """How tokens of all domains become rows, and in which order training sees the rows."""

    sequence_length: Annotated[int, Field(ge=8, le=LONGEST_ROW)]
    """Tokens of a row."""
    shuffle_buffer_size: Rows = 50_000
    """Rows of a domain are permuted inside windows of this many rows."""
    weights: Weights
    """Share of the training tokens per domain; 0: measured and not trained on."""
    max_repetition: Annotated[float, Field(gt=0.0, le=1000.0)] = 4.0
    """A training stage that would read a domain's rows more often than this is refused.

    Up to four epochs repeated text is nearly as good as new (arXiv 2305.16264).
    """


class PhaseSettings(Section):
    """Other weights from a step on, such as more of the best text at the end."""

    from_step: StepsOrZero
    """The first step with these weights, counted from 0."""
    weights: Weights
    """In place of ``mixture.weights``; names every domain."""


class DataSettings(Section):
    """Which rows of the mixture a training reads, and in which order."""

    order: Literal["shuffled", "length", "loss"] = "shuffled"
    """``length``, ``loss``: the rows that ``shuffled`` reads, easy first within each domain.

    ``length``: by the length of a row's documents, short first. ``loss``: by a row's loss per token
    under the model that the stage starts from, or learns from, not quantized; low first. It costs a
    forward pass over the rows of the run.
    """
    phases: list[PhaseSettings] = []
    """By first step; before the first one ``mixture.weights`` holds."""

    @model_validator(mode="after")
    def _phases_in_order(self) -> DataSettings:
        starts = [phase.from_step for phase in self.phases]
        if any(one >= other for one, other in pairwise(starts)):
            raise ValueError(
                f"phases begin at the steps {', '.join(map(str, starts))}, expected each to begin"
                " after the one before it"
            )
        return self
