"""A dense teacher for the ternary student (BitDistill, arXiv 2510.13998).

``L = w_ce CE + w_logits KL(next token) + w_relations KL(relations)``, every term a mean over the
tokens that the student is asked for. Each is logged raw and weighted, as ``distill/<term>`` and
``distill/<term>_weighted``, so that a term that does nothing shows. A term of weight 0 is not
computed and both are logged as 0, except the raw cross-entropy, which the loss per domain needs
anyway.

Shapes: B rows, T tokens of a row, N supervised or masked tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from wrinklefree.diffusion.objective import masked_cross_entropy, without_mask_token
from wrinklefree.diffusion.settings import DiffusionSettings
from wrinklefree.distill.logits import logits_divergence
from wrinklefree.distill.relations import (
    Capture,
    Projections,
    capture_projections,
    relation_layer,
    relation_mask,
    relations_divergence,
)
from wrinklefree.distill.vocabulary import check_vocabulary_sizes
from wrinklefree.mixture.batch import Batch
from wrinklefree.models.attention import causal_document_mask
from wrinklefree.train.distill_settings import DistillSettings
from wrinklefree.train.objectives.causal import predecessors_of
from wrinklefree.train.objectives.diffusion import (
    BlockDiffusion,
    DiffusionPrepared,
    masked_per_row,
)
from wrinklefree.train.objectives.objective import LossOutput, Prepared
from wrinklefree.train.objectives.rows import hidden_states, logits_of, sum_by_row


class _Teaching:
    """What both students need of the teacher and of the settings."""

    def __init__(self, settings: DistillSettings, teacher: PreTrainedModel) -> None:
        self.weights = settings.weights
        self.settings = settings
        self.teacher = teacher.eval().requires_grad_(False)

    @contextlib.contextmanager
    def captured(self, model: PreTrainedModel) -> Iterator[Capture]:
        """Capture the relation layer of ``model``, if relations count at all."""
        if not self.weights.relations:
            yield Capture()
            return
        layer = relation_layer(model, self.settings.relations.layer_fraction)
        with capture_projections(model, layer) as capture:
            yield capture

    def teach(self, batch: Batch, piece_BT: Tensor) -> tuple[Tensor | None, Capture]:
        """The teacher's hidden states and projections on the clean rows; None if nobody asks."""
        if not (self.weights.logits or self.weights.relations):
            return None, Capture()
        with torch.no_grad(), self.captured(self.teacher) as capture:
            hidden_BTD = hidden_states(
                self.teacher, batch.tokens_BT, batch.positions_BT, causal_document_mask(piece_BT)
            )
        return hidden_BTD, capture

    def logits_term(self, teacher_NV: Tensor, student_NV: Tensor) -> Tensor:
        """Divergence of next-token distributions per token, [N]."""
        return logits_divergence(
            teacher_NV,
            student_NV,
            temperature=self.settings.temperature,
            temperature_squared=self.settings.temperature_squared,
        )

    def relations_term(
        self, teacher: Projections, student: Projections, piece_BT: Tensor
    ) -> Tensor:
        """Divergence of relations per token, [B, T]."""
        relations = self.settings.relations
        return relations_divergence(
            teacher,
            student,
            relation_mask(piece_BT, causal=relations.causal),
            heads=relations.heads,
            temperature=relations.temperature,
        )

    def combine(
        self, cross_entropy: Tensor, logits: Tensor | None, relations: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and the terms to log; None is a term of weight 0."""
        zero = torch.zeros_like(cross_entropy.detach())
        loss, terms = zero, {}
        for name, value in (
            ("cross_entropy", cross_entropy),
            ("logits", logits),
            ("relations", relations),
        ):
            weight = getattr(self.weights, name)
            raw = zero if value is None else value
            weighted = weight * raw if weight else zero
            loss = loss + weighted
            terms[f"distill/{name}"] = raw.detach()
            terms[f"distill/{name}_weighted"] = weighted.detach()
        return loss, terms


class Distillation:
    """The autoregressive student."""

    def __init__(self, settings: DistillSettings, teacher: PreTrainedModel) -> None:
        """``teacher`` is frozen and put into evaluation mode; its device must be the student's.

        ``loss`` raises UserError if the vocabularies differ.
        """
        self._teaching = _Teaching(settings, teacher)

    def prepare(self, batch: Batch, step: int) -> Prepared:
        """Find the supervised tokens; nothing here is random."""
        return Prepared(batch, batch.has_predecessor_BT)

    def denominator(self, prepared: Prepared) -> float:
        """Supervised tokens."""
        return float(prepared.supervised_BT.sum())

    def loss(self, model: PreTrainedModel, prepared: Prepared, denominator: float) -> LossOutput:
        """The weighted sum of the terms, each summed over supervised tokens / denominator."""
        teaching, batch, supervised_BT = self._teaching, prepared.batch, prepared.supervised_BT
        check_vocabulary_sizes(teaching.teacher, model)
        mask = causal_document_mask(batch.document_ids_BT)
        teacher_hidden, teacher_capture = teaching.teach(batch, batch.document_ids_BT)
        with teaching.captured(model) as capture:
            hidden = hidden_states(model, batch.tokens_BT, batch.positions_BT, mask)
        logits_NV = logits_of(model, predecessors_of(hidden, supervised_BT))
        loss_N = functional.cross_entropy(
            logits_NV, batch.tokens_BT[supervised_BT], reduction="none"
        )
        divergence = relations = None
        if teaching.weights.logits:
            assert teacher_hidden is not None
            teacher_NV = logits_of(teaching.teacher, predecessors_of(teacher_hidden, supervised_BT))
            divergence = teaching.logits_term(teacher_NV, logits_NV).sum() / denominator
        if teaching.weights.relations:
            relations_BT = teaching.relations_term(
                teacher_capture.projections, capture.projections, batch.document_ids_BT
            )
            relations = relations_BT[supervised_BT].sum() / denominator
        loss, terms = teaching.combine(loss_N.sum() / denominator, divergence, relations)
        row_N = supervised_BT.nonzero(as_tuple=True)[0]
        return LossOutput(
            loss=loss,
            row_loss_B=sum_by_row(loss_N, row_N, len(supervised_BT)),
            row_tokens_B=supervised_BT.sum(1),
            terms=terms,
        )


class DiffusionDistillation:
    """The block-diffusion student of an autoregressive teacher.

    The teacher reads the clean text; at every masked token the student is drawn to the teacher's
    next-token distribution, and in the clean half to the teacher's relations. The mask token is
    impossible for both. The student may have it as one id more than the teacher.
    """

    def __init__(
        self,
        settings: DistillSettings,
        diffusion: DiffusionSettings,
        teacher: PreTrainedModel,
        mask_token_id: int,
        seed: int,
    ) -> None:
        """As ``Distillation`` and ``BlockDiffusion``."""
        self._teaching = _Teaching(settings, teacher)
        self._diffusion = BlockDiffusion(diffusion, mask_token_id, seed)

    def prepare(self, batch: Batch, step: int) -> DiffusionPrepared:
        """Draw the masks."""
        return self._diffusion.prepare(batch, step)

    def denominator(self, prepared: DiffusionPrepared) -> float:
        """That of ``BlockDiffusion``."""
        return self._diffusion.denominator(prepared)

    def loss(
        self, model: PreTrainedModel, prepared: DiffusionPrepared, denominator: float
    ) -> LossOutput:
        """The weighted sum of the terms, all under the weighting of the diffusion loss."""
        teaching, mask_id = self._teaching, self._diffusion.mask_token_id
        check_vocabulary_sizes(teaching.teacher, model, mask_id)
        piece_BT = prepared.blocks.piece_BT
        teacher_hidden, teacher_capture = teaching.teach(prepared.batch, piece_BT)
        with teaching.captured(model) as capture:
            masked = self._diffusion.predict(model, prepared)
        logits_NV = logits_of(model, masked.hidden_ND)
        loss_N = masked_cross_entropy(logits_NV, masked.targets_N, mask_id)
        divergence = relations = None
        if teaching.weights.logits:
            assert teacher_hidden is not None
            # Without a token shift the first token of a piece counts, and no teacher predicts it.
            taught_N = prepared.batch.has_predecessor_BT[masked.row_N, masked.position_N]
            before_ND = teacher_hidden[masked.row_N, masked.position_N - 1][taught_N]
            teacher_NV = without_mask_token(logits_of(teaching.teacher, before_ND), mask_id)
            student_NV = without_mask_token(logits_NV[taught_N], mask_id)
            divergence_N = teaching.logits_term(teacher_NV, student_NV[:, : teacher_NV.shape[-1]])
            divergence = (masked.weight_N[taught_N] * divergence_N).sum() / denominator
        if teaching.weights.relations:
            rows, length = piece_BT.shape
            # The clean half is the same in every view: the first one's stands for all.
            clean = capture.projections.rows(length, 2 * length, batch=rows)
            relations_BT = teaching.relations_term(teacher_capture.projections, clean, piece_BT)
            relations = (self._relation_weights(prepared) * relations_BT).sum() / denominator
        loss, terms = teaching.combine(
            (masked.weight_N * loss_N).sum() / denominator, divergence, relations
        )
        return LossOutput(
            loss=loss,
            row_loss_B=sum_by_row(loss_N, masked.row_N, len(piece_BT)),
            row_tokens_B=masked_per_row(prepared),
            terms=terms,
        )

    def _relation_weights(self, prepared: DiffusionPrepared) -> Tensor:
        """Share of every token in the denominator, float32 [B, T].

        So the term is a mean: over masked tokens for ``unit``, over all supervised ones for
        ``elbo``.
        """
        views = prepared.views
        if self._diffusion.settings.loss_weighting == "unit":
            return torch.stack([view.masked_BT for view in views]).sum(0).float()
        return len(views) * prepared.supervised_BT.float()
