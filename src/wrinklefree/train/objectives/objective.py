"""What the training loop asks of an objective.

Shapes: B rows of a micro-batch, T tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.mixture.batch import Batch


@dataclass(frozen=True)
class Prepared:
    """A micro-batch with its targets: all that is random about it is already drawn."""

    batch: Batch
    supervised_BT: Tensor
    """bool: positions whose token the loss asks for."""


@dataclass(frozen=True)
class LossOutput:
    """The loss of one micro-batch."""

    loss: Tensor
    """Scalar to back-propagate, already divided by the step's denominator."""
    row_loss_B: Tensor
    """Detached sum of cross-entropy (nats) over the supervised tokens of each row."""
    row_tokens_B: Tensor
    """Number of supervised tokens of each row."""
    terms: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars to log, divided by the denominator; the loop adds up micro-batches."""


P = TypeVar("P", bound=Prepared)


class Objective(Protocol[P]):
    """A training objective.

    ``prepare`` must be a function of (seed, step, batch.sample_B) alone, so that a resumed run
    repeats it. The loop adds ``denominator`` over all micro-batches of a step and hands the sum to
    every ``loss``, so that gradient accumulation does not change the objective.
    """

    def prepare(self, batch: Batch, step: int) -> P:
        """Draw all that is random about a micro-batch."""
        ...

    def denominator(self, prepared: P) -> float:
        """What the micro-batch adds to the step's denominator."""
        ...

    def loss(self, model: PreTrainedModel, prepared: P, denominator: float) -> LossOutput:
        """The micro-batch's part of the step's loss."""
        ...
