"""What a corruption asks the network, what the network gives back, and who is told.

Shapes: B rows of a micro-batch, T tokens of a row, R rows of S tokens that the network reads (other
than B and T where a row is read in several views), N asked tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.mixture.batch import Batch
from wrinklefree.models.attention import AttentionRule
from wrinklefree.models.forward import loss_logits_of
from wrinklefree.train.objectives.inside import Looks, Seen


@dataclass(frozen=True)
class Prepared:
    """A micro-batch with its targets: all that is random about it is already drawn."""

    batch: Batch
    supervised_BT: Tensor
    """bool: positions whose token can be asked for."""


@dataclass(frozen=True)
class Question:
    """What the network reads, and which tokens it is asked for. All indices are int64."""

    tokens_RS: Tensor
    positions_RS: Tensor
    mask: AttentionRule
    """Who attends to whom, of R rows of S tokens."""
    asking_row_N: Tensor
    asking_position_N: Tensor
    """Where the network's output predicts each asked token."""
    row_N: Tensor
    position_N: Tensor
    """Where the asked tokens stand in the micro-batch."""
    target_N: Tensor
    weight_N: Tensor
    """float32: factor of each token's terms."""
    clean_weight_BT: Tensor
    """Share of every clean token in the denominator: float32, or bool where all have the same."""
    piece_BT: Tensor
    """int64: document piece of every token, -1 on padding. Pieces do not see each other."""
    clean_start: int
    """The tokens ``clean_start`` to ``clean_start + T`` of the first B rows are the clean text."""
    mask_token_id: int | None
    """A token that no answer can be."""

    def part(self, rows: slice | Tensor) -> Question:
        """The same reading, with some of the asked tokens."""
        names = ("asking_row_N", "asking_position_N", "row_N", "position_N", "target_N", "weight_N")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def sum_over_clean(self, values_BC: Tensor, columns: slice) -> Tensor:
        """The weighted sum of what the clean tokens of some columns have."""
        weight_BC = self.clean_weight_BT[:, columns]
        if weight_BC.dtype == torch.bool:
            return values_BC[weight_BC].sum()
        return (weight_BC * values_BC).sum()


@dataclass(frozen=True)
class Outputs:
    """What a model says, and what terms may look at inside of it; gradients flow through all.

    There are no logits here: those of all asked tokens are the largest tensor of a step, so they
    are computed some at a time, by whoever is there to use them at once.
    """

    question: Question
    hidden_ND: Tensor
    """The decoder's output where the asked tokens are predicted."""
    model: PreTrainedModel
    """Whose head makes logits of it."""
    inside: Mapping[str, Seen] = field(default_factory=dict)
    """By term: what it looks at inside of the model, on the clean text."""

    def logits_of(self, hidden_ND: Tensor) -> Tensor:
        """Of some of ``hidden_ND``, -inf at the mask token (``models.forward.loss_logits_of``)."""
        return loss_logits_of(self.model, hidden_ND, self.question.mask_token_id)

    def means_over_layers(self, layers: Iterable[Sequence[Tensor]]) -> list[Tensor]:
        """Of each number that ``layers`` have, times the micro-batch's share in the denominator."""
        weight = self.question.clean_weight_BT.sum()
        return [weight * torch.stack(each).mean() for each in zip(*layers, strict=True)]


class Corruption(Protocol):
    """Turns rows into questions.

    ``prepare`` must be a function of (seed, step, batch.sample_B) alone, so that a resumed run
    repeats it. The loop adds ``denominator`` over all micro-batches of a step and divides every
    term by the sum, so that gradient accumulation does not change the objective.
    """

    @property
    def mask_token_id(self) -> int | None:
        """A token that stands for a question, where it has one."""
        ...

    def prepare(self, batch: Batch, step: int) -> Any:
        """Draw all that is random about a micro-batch: a ``Prepared``."""
        ...

    def denominator(self, prepared: Any) -> float:
        """What the micro-batch adds to the step's denominator."""
        ...

    def question(self, prepared: Any) -> Question:
        """What the network reads and is asked for."""
        ...


class Share:
    """Turns a term's sums over tokens into its part of the loss, and adds them up to be logged."""

    def __init__(self, weight: float, denominator: float) -> None:
        self.weight = weight
        self._denominator = denominator
        self.raw: Tensor | float = 0.0
        """What came so far over the denominator, detached and without the weight."""

    def __call__(self, total: Tensor) -> Tensor:
        """Of a sum over some tokens, a scalar."""
        raw = total / self._denominator
        self.raw = self.raw + raw.detach()
        return self.weight * raw

    def times(self, factor: float) -> Callable[[Tensor], Tensor]:
        """Of the sums of one of several teachers."""
        return lambda total: self(factor * total)


class VocabularyTerm(Protocol):
    """What a teacher adds to the loss at the asked tokens, some of them at a time."""

    @property
    def name(self) -> str:
        """What metrics call it."""
        ...

    def total(self, logits_NV: Tensor, question: Question, lesson: Any) -> Tensor:
        """The sum over the asked tokens of ``question``, a scalar; the logits are the student's."""
        ...


class Term(Protocol):
    """What a teacher adds to the loss by looking inside."""

    @property
    def name(self) -> str:
        """What metrics call it."""
        ...

    def looks_at(self, model: PreTrainedModel) -> Looks:
        """Where in student and teacher it looks."""
        ...

    def loss(self, outputs: Outputs, lesson: Any, share: Callable[[Tensor], Tensor]) -> Tensor:
        """Its part of the loss, a scalar: ``share`` of the sum over tokens."""
        ...


class OwnTerm(Protocol):
    """What the model adds to the loss without a teacher, by what is inside of it."""

    @property
    def name(self) -> str:
        """What metrics call it."""
        ...

    def looks_at(self, model: PreTrainedModel) -> Looks:
        """Where in the model it looks."""
        ...

    def read(self, outputs: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over tokens, a scalar, and such sums to log, by the names of their metrics."""
        ...


class Teacher(Protocol):
    """Reads what the student is asked about."""

    @property
    def model(self) -> PreTrainedModel | None:
        """The model that reads, where one is in memory."""
        ...

    def check(self, student: PreTrainedModel, mask_token_id: int | None) -> None:
        """Raise UserError where it can't teach ``student``, which has this mask token."""
        ...

    def read(self, batch: Batch, piece_BT: Tensor, looks: Mapping[str, Looks]) -> Any:
        """What terms are told of the clean text; ``looks``: at what they look, by term."""
        ...
