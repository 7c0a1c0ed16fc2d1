"""What a training minimises: a corruption, and a list of weighted terms. Any with any.

``L = w_ce CE + sum of w_term term``, every term a mean over the tokens that the model is asked for
(BitDistill, arXiv 2510.13998, for those of a teacher). Each is logged raw and weighted, as
``distill/<term>`` and ``distill/<term>_weighted``, so that a term that does nothing shows. A term
of weight 0 is not computed and both are logged as 0, except the raw cross-entropy, which the loss
per domain needs anyway. Terms without a teacher are logged as ``train/<term>``; they are read for
their metrics whatever their weight.

Shapes: as in ``question``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.kernels.sum_by_blocks import sum_by_blocks
from wrinklefree.models.factorized import token_losses_of
from wrinklefree.models.forward import hidden_states, tokens_at_once
from wrinklefree.train.gradient_ratio_settings import GradientRatioSettings
from wrinklefree.train.objectives.inside import Looks, looking
from wrinklefree.train.objectives.question import (
    Corruption,
    Outputs,
    OwnTerm,
    Prepared,
    Share,
    Teacher,
    Term,
    VocabularyTerm,
)

CROSS_ENTROPY = "cross_entropy"


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
    """A corruption with the cross-entropy of what it asks for, terms of teachers and of its own."""

    corruption: Corruption
    vocabulary_terms: Sequence[VocabularyTerm] = ()
    terms: Sequence[Term] = ()
    teachers: Sequence[tuple[float, Teacher]] = ()
    """Of the terms, each with the weight of what it adds to any of them."""
    weights: dict[str, float] = field(default_factory=lambda: {CROSS_ENTROPY: 1.0})
    """Of the text itself, as ``cross_entropy``, and of each term by its name. They may change
    between steps, but none becomes 0 or comes back from it."""
    gradient_ratios: GradientRatioSettings | None = None
    """How strong the terms are to be, and when that is measured."""
    own_terms: Sequence[OwnTerm] = ()
    """Terms that no teacher is asked for."""

    def alone(self, name: str) -> Objective:
        """The cross-entropy or one of the terms, with weight 1."""
        own = [term for term in self.own_terms if term.name == name]
        weights = dict.fromkeys(self.weights, 0.0) | {name: 1.0}
        return replace(self, weights=weights, own_terms=own)

    def with_own(self, term: OwnTerm, weight: float) -> Objective:
        """The same, and a term that no teacher is asked for."""
        weights = self.weights | {term.name: weight}
        return replace(self, own_terms=[*self.own_terms, term], weights=weights)

    def looks(self, model: PreTrainedModel) -> dict[str, Looks]:
        """What the terms of a teacher look at inside of ``model``, by term."""
        return {term.name: term.looks_at(model) for term in self.terms if self.weights[term.name]}

    def own_looks(self, model: PreTrainedModel) -> dict[str, Looks]:
        """What all terms look at inside of the ``model`` that is trained, by term."""
        return self.looks(model) | {term.name: term.looks_at(model) for term in self.own_terms}

    def loss(self, outputs: Outputs, prepared: Prepared, denominator: float) -> LossOutput:
        """The weighted sum of the terms over ``denominator``; the row sums are not weighted."""
        question, lessons = outputs.question, []
        shares = {name: Share(weight, denominator) for name, weight in self.weights.items()}
        if any(self.weights[term.name] for term in (*self.vocabulary_terms, *self.terms)):
            for weight, teacher in self.teachers:
                looks = self.looks(teacher.model) if teacher.model else {}
                lesson = teacher.read(prepared.batch, question.piece_BT, looks)
                lessons.append((weight, lesson))
        loss, loss_N = self._over_the_vocabulary(outputs, lessons, shares)
        for term in self.terms:
            if self.weights[term.name]:
                for weight, lesson in lessons:
                    loss = loss + term.loss(outputs, lesson, shares[term.name].times(weight))
        logged: dict[str, Tensor] = {}
        for term in self.own_terms:
            total, metrics = term.read(outputs)
            loss = loss + shares[term.name](total)
            logged |= {name: value.detach() / denominator for name, value in metrics.items()}
        own = {term.name for term in self.own_terms}
        for name, share in shares.items():
            if self.teachers or name in own:
                path = f"{'train' if name in own else 'distill'}/{name}"
                logged[path] = torch.as_tensor(share.raw, device=loss.device)
                logged[f"{path}_weighted"] = share.weight * logged[path]
        return LossOutput(
            loss=loss,
            row_loss_B=_sum_by_row(loss_N, question.row_N, len(prepared.supervised_BT)),
            row_tokens_B=question.row_N.bincount(minlength=len(prepared.supervised_BT)),
            terms=logged,
        )

    def _over_the_vocabulary(
        self, outputs: Outputs, lessons: list[tuple[float, Any]], shares: Mapping[str, Share]
    ) -> tuple[Tensor, Tensor]:
        """The part of the loss that needs logits; the cross-entropy of every asked token, [N].

        Logits are of a block of tokens at a time (``kernels.sum_by_blocks``); all terms share them.
        """
        losses_N: list[Tensor] = []

        def total(rows: slice, hidden_ND: Tensor) -> Tensor:
            part, logits_NV = outputs.question.part(rows), outputs.logits_of(hidden_ND[rows])
            loss_N = token_losses_of(outputs.model, logits_NV, part.target_N)
            losses_N.append(loss_N.detach())
            loss = torch.zeros_like(loss_N.sum())
            cross_entropy = shares[CROSS_ENTROPY]((part.weight_N * loss_N).sum())
            if self.weights[CROSS_ENTROPY]:
                loss = loss + cross_entropy
            for term in self.vocabulary_terms:
                if self.weights[term.name]:
                    for weight, lesson in lessons:
                        share = shares[term.name].times(weight)
                        loss = loss + share(term.total(logits_NV, part, lesson))
            return loss

        head = outputs.model.get_output_embeddings()
        assert head is not None, "a causal language model has a head"
        weights = list(head.parameters())
        of_logits = (CROSS_ENTROPY, *(term.name for term in self.vocabulary_terms))
        learned = any(self.weights[name] for name in of_logits)
        hidden_ND = outputs.hidden_ND if learned else outputs.hidden_ND.detach()
        with torch.set_grad_enabled(torch.is_grad_enabled() and learned):
            loss = sum_by_blocks(
                total,
                [hidden_ND],
                weights,
                rows=len(hidden_ND),
                size=tokens_at_once(len(weights[0])),
            )
        return loss, torch.cat(losses_N)


class TrainStep(nn.Module):
    """The model and what is asked of it: all that is wrapped, compiled or sharded as one.

    Raises UserError where one of the objective's teachers can't teach ``model``.
    """

    def __init__(self, model: PreTrainedModel, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.looks = objective.own_looks(model)
        """What the terms look at inside of the model."""
        for _, teacher in objective.teachers:
            teacher.check(model, objective.corruption.mask_token_id)

    def forward(self, prepared: Prepared) -> Outputs:
        """Run the network on what the corruption made of the rows."""
        question = self.objective.corruption.question(prepared)
        with looking(self.model, self.looks) as seen:
            hidden_RSD = hidden_states(
                self.model, question.tokens_RS, question.positions_RS, question.mask
            )
        rows, length = question.piece_BT.shape
        start = question.clean_start
        return Outputs(
            question,
            hidden_RSD[question.asking_row_N, question.asking_position_N],
            self.model,
            {n: found.rows(start, start + length, batch=rows) for n, found in seen().items()},
        )


def _sum_by_row(values_N: Tensor, row_N: Tensor, rows: int) -> Tensor:
    """Sum of the values of each row, [rows], without a gradient."""
    return values_N.new_zeros(rows).index_add_(0, row_N, values_N.detach())
