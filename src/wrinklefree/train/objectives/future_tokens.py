"""Tokens behind the next one, by heads of their own (arXiv 2404.19737).

Shapes: as in ``question``; V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.kernels.sum_by_blocks import sum_by_blocks
from wrinklefree.kernels.vocabulary_loss import cross_entropy
from wrinklefree.models.forward import tokens_at_once
from wrinklefree.models.future_heads import future_heads, future_states
from wrinklefree.train.future_tokens_settings import FutureTokensSettings
from wrinklefree.train.objectives.inside import Looks
from wrinklefree.train.objectives.objective import Objective
from wrinklefree.train.objectives.question import Outputs


class FutureTokens:
    """The mean over heads of the cross-entropy of the token that each predicts.

    Head k reads what the asked token is predicted from, and is asked for the token k places behind
    it. Where the document ends before, nothing is asked, which counts as 0. For each head its
    ``future_tokens/loss_<k>`` is logged.
    """

    name = "future_tokens"

    def looks_at(self, model: PreTrainedModel) -> Looks:
        """Nothing but the hidden states that there are."""
        return Looks()

    def read(self, outputs: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Over the asked tokens, one head after the other."""
        heads = future_heads(outputs.model)
        losses = [self._loss(outputs, head, k) for k, head in enumerate(heads, start=1)]
        metrics = {f"future_tokens/loss_{k}": loss for k, loss in enumerate(losses, start=1)}
        return torch.stack(losses).mean(), metrics

    def _loss(self, outputs: Outputs, head: nn.Module, ahead: int) -> Tensor:
        question, own = outputs.question, outputs.model.get_output_embeddings()
        assert own is not None, "a causal language model has a head"
        piece_BT, last = question.piece_BT, question.piece_BT.shape[1] - 1
        row_N, place_N = question.row_N, question.position_N + ahead
        at_N = place_N.clamp(max=last)
        kept_N = (place_N <= last) & (piece_BT[row_N, at_N] == piece_BT[row_N, question.position_N])
        target_N = question.tokens_RS[row_N, question.clean_start + at_N][kept_N]
        weight_N = question.weight_N[kept_N]

        def total(rows: slice, hidden_ND: Tensor) -> Tensor:
            logits_NV = outputs.logits_of(future_states(head, hidden_ND[rows]))
            loss_N = cross_entropy(logits_NV, target_N[rows])
            return (weight_N[rows] * loss_N).sum()

        return sum_by_blocks(
            total,
            [outputs.hidden_ND[kept_N]],
            [*own.parameters(), *head.parameters()],
            rows=len(target_N),
            size=tokens_at_once(outputs.model.config.vocab_size),
        )


def with_future_tokens(objective: Objective, settings: FutureTokensSettings) -> Objective:
    """``objective``, and the tokens of the heads of ``settings``, if there are any."""
    if not settings.heads:
        return objective
    return objective.with_own(FutureTokens(), settings.weight)
