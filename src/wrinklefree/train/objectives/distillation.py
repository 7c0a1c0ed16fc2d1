"""A dense teacher for the ternary student (BitDistill, arXiv 2510.13998).

An autoregressive teacher reads the clean text. It draws the student to its next-token distribution
at every token that the student is asked for, and to its relations between clean tokens.

Shapes: as in ``question``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.distill.hidden import fitted_map, hidden_distance
from wrinklefree.distill.logits import logits_divergence
from wrinklefree.distill.relations import (
    relation_vectors,
    relations_divergence,
    streamed_divergence,
)
from wrinklefree.distill.settings import HiddenSettings, RelationSettings
from wrinklefree.distill.vocabulary import check_vocabulary_sizes
from wrinklefree.errors import UserError
from wrinklefree.kernels.relation_loss import has_kernel
from wrinklefree.kernels.sum_by_blocks import block_size, sum_by_blocks
from wrinklefree.mixture.batch import Batch
from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.forward import hidden_states, loss_logits_of, require_positions
from wrinklefree.models.layers import layer_at
from wrinklefree.models.projections import Projections, attention_of
from wrinklefree.train.distill_settings import DistillationSettings
from wrinklefree.train.objectives.inside import Looks, Seen, looking
from wrinklefree.train.objectives.objective import Objective
from wrinklefree.train.objectives.question import Corruption, Outputs, Question, Teacher

Sharing = Callable[[Tensor], Tensor]
"""Turns a sum over tokens into a part of the loss."""
LEAST_TOKENS_PER_FEATURE = 2
"""Of a micro-batch, for a map between hidden states of other widths: fewer fit nearly anything."""
LEAST_QUERIES = 32
"""Fewest queries of a block: each block adds to the gradients of all keys, however short."""


def queries_at_once(rows: int, heads: int, tokens: int) -> int:
    """How many queries a block of relations has, each with all tokens of its row as keys."""
    return block_size(rows * heads * tokens, least=LEAST_QUERIES)


@dataclass(frozen=True)
class Lesson:
    """The teacher's reading of a micro-batch."""

    teacher: PreTrainedModel
    batch: Batch
    hidden_BTD: Tensor
    inside: Mapping[str, Seen]
    """By term: what it looks at."""

    def divergence_N(self, student_NV: Tensor, question: Question, **how: Any) -> Tensor:
        """Of the student's logits, at asked tokens that have another before them."""
        with torch.no_grad():
            hidden_ND = self.hidden_BTD[question.row_N, question.position_N - 1]
            teacher_NV = loss_logits_of(self.teacher, hidden_ND, question.mask_token_id)
        student_NV = student_NV[:, : teacher_NV.shape[-1]]
        return logits_divergence(teacher_NV, student_NV, question.target_N, **how)


class DenseTeacher:
    """Reads the clean text; frozen, in evaluation mode, and on the student's device."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval().requires_grad_(False)

    def check(self, student: PreTrainedModel, mask_token_id: int | None) -> None:
        """Raise UserError where the vocabularies differ by more than the mask token."""
        check_vocabulary_sizes(self.model, student, mask_token_id)

    @torch.no_grad()
    def read(self, batch: Batch, piece_BT: Tensor, looks: Mapping[str, Looks]) -> Lesson:
        """Read the clean rows, and look inside; raises UserError where they are too long for it."""
        require_positions(self.model, batch.tokens_BT.shape[1], "teacher")
        with looking(self.model, looks) as seen:
            hidden_BTD = hidden_states(
                self.model, batch.tokens_BT, batch.positions_BT, causal_document_mask(piece_BT)
            )
        return Lesson(self.model, batch, hidden_BTD, seen())


class LogitsDivergence:
    """KL to the teacher's next-token distribution (BitDistill, arXiv 2510.13998, eq. 10)."""

    name = "logits"

    def __init__(self, settings: DistillationSettings) -> None:
        self._how: Any = {
            "temperature": settings.temperature,
            "temperature_squared": settings.temperature_squared,
            "direction": settings.direction,
        }

    def total(self, logits_NV: Tensor, question: Question, lesson: Any) -> Tensor:
        """Over the asked tokens that the teacher predicts: none does the first of a document."""
        taught_N = lesson.batch.has_predecessor_BT[question.row_N, question.position_N]
        if not taught_N.all():
            logits_NV, question = logits_NV[taught_N], question.part(taught_N)
        divergence_N = lesson.divergence_N(logits_NV, question, **self._how)
        return (question.weight_N * divergence_N).sum()


class RelationsDivergence:
    """KL to the teacher's relations between tokens (``distill.relations``)."""

    name = "relations"

    def __init__(self, settings: RelationSettings) -> None:
        self._settings = settings

    def looks_at(self, model: PreTrainedModel) -> Looks:
        """The layers at ``layer_fractions`` of the depth."""
        layers = [layer_at(model, fraction) for fraction in self._settings.layer_fractions]
        for layer in layers:
            attention_of(model, layer)
        return Looks(projections=layers)

    def loss(self, outputs: Outputs, lesson: Lesson, share: Sharing) -> Tensor:
        """The mean over layers, over the clean tokens by their share in the denominator."""
        pairs = zip(*(o.inside[self.name].projections for o in (lesson, outputs)), strict=True)
        return torch.stack(
            [self._of_a_layer(pair, outputs.question, share) for pair in pairs]
        ).sum()

    def _of_a_layer(
        self, pair: Sequence[Projections], question: Question, share: Sharing
    ) -> Tensor:
        """Of teacher and student, some queries at a time."""
        settings = self._settings
        teacher, student = (relation_vectors(one, settings.heads) for one in pair)
        how = {"causal": settings.causal, "temperature": settings.temperature}
        layers = len(settings.layer_fractions)
        if has_kernel(student[0]):
            divergence_BT = streamed_divergence(teacher, student, question.piece_BT, **how)
            return share(question.sum_over_clean(divergence_BT, slice(None)) / layers)

        def total(queries: slice, *student_BRTE: Tensor) -> Tensor:
            divergence_BC = relations_divergence(
                teacher, student_BRTE, question.piece_BT, queries, **how
            )
            return share(question.sum_over_clean(divergence_BC, queries) / layers)

        batch, length = question.piece_BT.shape
        size = queries_at_once(batch, settings.heads, length)
        return sum_by_blocks(total, student, (), rows=length, size=size)


class HiddenStatesDistance:
    """How far hidden states are from the teacher's (``distill.hidden``)."""

    name = "hidden"

    def __init__(self, settings: HiddenSettings) -> None:
        self._settings = settings

    def looks_at(self, model: PreTrainedModel) -> Looks:
        """What leaves the layers at ``layer_fractions`` of the depth."""
        return Looks(states=[layer_at(model, part) for part in self._settings.layer_fractions])

    def loss(self, outputs: Outputs, lesson: Lesson, share: Sharing) -> Tensor:
        """The mean over layers, over the clean tokens by their share in the denominator."""
        teacher, student = (one.inside[self.name].states_BTD for one in (lesson, outputs))
        weight_BT = outputs.question.clean_weight_BT
        distances = [
            hidden_distance(theirs, _widened(theirs, ours, weight_BT), self._settings.distance)
            for theirs, ours in zip(teacher, student, strict=True)
        ]
        mean_BT = torch.stack(distances).mean(0)
        return share(outputs.question.sum_over_clean(mean_BT, slice(None)))


def _widened(teacher_BTD: Tensor, student_BTE: Tensor, weight_BT: Tensor) -> Tensor:
    """The student's hidden states in the teacher's features, by the map that fits them best."""
    features = student_BTE.shape[-1]
    if teacher_BTD.shape[-1] == features:
        return student_BTE
    counted_BT = weight_BT > 0
    if (tokens := int(counted_BT.sum())) < LEAST_TOKENS_PER_FEATURE * features:
        raise UserError(
            f"hidden states of the teacher have {teacher_BTD.shape[-1]} features and those of the"
            f" student {features}: the map between them is fitted to each micro-batch, and needs"
            f" {LEAST_TOKENS_PER_FEATURE * features:,} tokens; it has {tokens:,}. Raise batch_size,"
            " or set weights.hidden to 0"
        )
    with torch.autocast(student_BTE.device.type, enabled=False):
        map_ED = fitted_map(teacher_BTD[counted_BT], student_BTE[counted_BT], weight_BT[counted_BT])
        return student_BTE @ map_ED.to(student_BTE.dtype)


def distillation(
    corruption: Corruption, settings: DistillationSettings, *teachers: PreTrainedModel | Teacher
) -> Objective:
    """The objective of a training with teachers, in the order of their weights in the settings.

    A model is a ``DenseTeacher``.
    """
    terms = [RelationsDivergence(settings.relations)] if settings.relations else []
    reading = [DenseTeacher(t) if isinstance(t, PreTrainedModel) else t for t in teachers]
    return Objective(
        corruption,
        [LogitsDivergence(settings)],
        [*terms, HiddenStatesDistance(settings.hidden)],
        list(zip(settings.teachers.values(), reading, strict=True)),
        # A target begins with some weight, until the first step tells which.
        settings.weights.model_dump() | dict.fromkeys(settings.gradient_ratios.targets, 1.0),
        settings.gradient_ratios,
    )
