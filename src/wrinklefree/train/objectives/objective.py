"""What a training minimises: a corruption, and a list of weighted terms. Any with any.

``L = w_ce CE + sum of w_term term``, every term a mean over the tokens that the model is asked for
(BitDistill, arXiv 2510.13998, for those of a teacher). Each is logged raw and weighted, as
``distill/<term>`` and ``distill/<term>_weighted``, so that a term that does nothing shows. A term
of weight 0 is not computed and both are logged as 0, except the raw cross-entropy, which the loss
per domain needs anyway.

Shapes: as in ``question``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from wrinklefree.models.forward import hidden_states, logits_of, without_mask_token
from wrinklefree.models.projections import captured
from wrinklefree.train.objectives.question import Corruption, Outputs, Prepared, Teacher, Term


@dataclass(frozen=True)
class LossOutput:
    """The loss of one micro-batch."""

    loss: Tensor
    """Scalar to back-propagate, already divided by the step's denominator."""
    row_loss_B: Tensor
    """Detached sum of cross-entropy (nats) over the asked tokens of each row."""
    row_tokens_B: Tensor
    """Number of asked tokens of each row, int64."""
    terms: dict[str, Tensor]
    """Detached scalars to log, divided by the denominator; the loop adds up micro-batches."""


@dataclass(frozen=True)
class Objective:
    """A corruption with the cross-entropy of what it asks for, and terms of a teacher."""

    corruption: Corruption
    cross_entropy: float = 1.0
    """Weight of the text itself."""
    terms: Sequence[tuple[float, Term]] = ()
    """Weights and terms."""
    teacher: Teacher | None = None
    """Of the terms."""

    def layers(self, model: PreTrainedModel) -> dict[str, int]:
        """The layers of ``model`` whose projections the terms look at, by term."""
        layers = {term.name: term.layer(model) for weight, term in self.terms if weight}
        return {name: layer for name, layer in layers.items() if layer is not None}

    def loss(self, outputs: Outputs, prepared: Prepared, denominator: float) -> LossOutput:
        """The weighted sum of the terms over ``denominator``; the row sums are not weighted."""
        question = outputs.question
        loss_N = functional.cross_entropy(outputs.logits_NV, question.target_N, reduction="none")
        raw = {"cross_entropy": (question.weight_N * loss_N).sum() / denominator}
        weights = {"cross_entropy": self.cross_entropy}
        weights |= {term.name: weight for weight, term in self.terms}
        if self.teacher and any(weight for weight, _ in self.terms):
            layers = self.layers(self.teacher.model)
            lesson = self.teacher.read(prepared.batch, question.piece_BT, layers)
            for weight, term in self.terms:
                if weight:
                    raw[term.name] = term.total(outputs, lesson) / denominator
        zero = torch.zeros_like(raw["cross_entropy"].detach())
        loss, logged = zero, {}
        for name, weight in weights.items():
            weighted = weight * raw[name] if weight else zero
            loss = loss + weighted
            logged[f"distill/{name}"] = raw.get(name, zero).detach()
            logged[f"distill/{name}_weighted"] = weighted.detach()
        return LossOutput(
            loss=loss,
            row_loss_B=_sum_by_row(loss_N, question.row_N, len(prepared.supervised_BT)),
            row_tokens_B=question.row_N.bincount(minlength=len(prepared.supervised_BT)),
            terms=logged if self.terms else {},
        )


class TrainStep(nn.Module):
    """The model and what is asked of it: all that is wrapped, compiled or sharded as one.

    Raises UserError where the objective's teacher can't teach ``model``.
    """

    def __init__(self, model: PreTrainedModel, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self._layers = objective.layers(model)
        if objective.teacher:
            objective.teacher.check(model, objective.corruption.mask_token_id)

    def forward(self, prepared: Prepared) -> Outputs:
        """Run the network on what the corruption made of the rows."""
        question = self.objective.corruption.question(prepared)
        with captured(self.model, self._layers) as captures:
            hidden_RSD = hidden_states(
                self.model, question.tokens_RS, question.positions_RS, question.mask_R1SS
            )
        logits_NV = logits_of(
            self.model, hidden_RSD[question.asking_row_N, question.asking_position_N]
        )
        if question.mask_token_id is not None:
            logits_NV = without_mask_token(logits_NV, question.mask_token_id)
        rows, length = question.piece_BT.shape
        start = question.clean_start
        return Outputs(
            question,
            logits_NV,
            {
                name: capture.projections.rows(start, start + length, batch=rows)
                for name, capture in captures.items()
            },
        )


def _sum_by_row(values_N: Tensor, row_N: Tensor, rows: int) -> Tensor:
    """Sum of the values of each row, [rows], without a gradient."""
    return values_N.new_zeros(rows).index_add_(0, row_N, values_N.detach())
