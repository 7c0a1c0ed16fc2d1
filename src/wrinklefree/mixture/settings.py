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
    Steps,
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
    """Share of the training tokens for each domain. A domain with 0 is measured, but not trained
    on."""
    max_repetition: Annotated[float, Field(gt=0.0, le=1000.0)] = 4.0
    """A training stage that would read a domain's rows more often than this is refused.

    Up to four epochs repeated text is nearly as good as new (arXiv 2305.16264).
    """


class PhaseSettings(Section):
    """Other weights from a step on, such as more of the best text at the end."""

    from_step: StepsOrZero
    """The first step with these weights, counted from 0."""
    weights: Weights
    """Weights in place of ``mixture.weights``. Every domain must be named."""


class InfluenceSettings(Section):
    """Weights that follow what each domain does for a held-out probe, as training goes on.

    Every update is an event of the data order: recorded, and repeated by a run that resumes.
    """

    enabled: bool = False
    """Whether weights move at all."""
    interval: Steps = 50
    """Steps between updates. Each costs a few forward and backward passes per domain."""
    rows_per_domain: Rows = 8
    """Rows of each domain that an update reads: so many training rows, and so many held-out rows
    for the probe."""
    step_size: Annotated[float, Field(ge=0.0, le=1000.0)] = 1.0
    """How strongly a domain's score (a cosine, -1 to 1) moves the logarithm of its weight."""
    smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.7
    """Weight of the past in the running mean of the scores."""
    floor: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.02
    """Smallest weight of a domain whose weight is not 0."""
    target: dict[Name, NonNegativeFloat] | None = None
    """Weights of the domains' held-out losses in the probe. Default: the present weights."""

    @model_validator(mode="after")
    def _probe_has_text(self) -> InfluenceSettings:
        if self.target is not None and not sum(self.target.values()):
            raise ValueError("every weight of target is 0; give a domain that counts a weight")
        return self


class DataSettings(Section):
    """Which rows of the mixture a training reads, and in which order."""

    order: Literal["shuffled", "length", "loss"] = "shuffled"
    """``length``, ``loss``: the rows that ``shuffled`` reads, easy first within each domain.

    ``length``: by the length of a row's documents, short first. ``loss``: by a row's loss per token
    under the model that the stage starts from, or learns from, not quantized; low first. It costs a
    forward pass over the rows of the run.
    """
    phases: list[PhaseSettings] = []
    """Changes of weights, in order of their first step. Before the first, ``mixture.weights``
    holds."""
    influence: InfluenceSettings = InfluenceSettings()
    """Weights that move with what each domain does for held-out text."""

    @model_validator(mode="after")
    def _order_is_open(self) -> DataSettings:
        if self.influence.enabled and self.order != "shuffled":
            raise ValueError(
                f"influence.enabled changes which rows are read, and order {self.order} sorts the"
                " rows of the whole run before it begins; use order shuffled, or no influence"
            )
        return self

    @model_validator(mode="after")
    def _phases_in_order(self) -> DataSettings:
        starts = [phase.from_step for phase in self.phases]
        if any(one >= other for one, other in pairwise(starts)):
            raise ValueError(
                f"phases begin at the steps {', '.join(map(str, starts))}, expected each to begin"
                " after the one before it"
            )
        return self
