"""What a model makes of the next token, in nats per token.

Shapes: B rows, T tokens of a row, N asked tokens, C a block of them, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.mixture.batch import Batch
from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.factorized import token_losses_of
from wrinklefree.models.forward import hidden_states, loss_logits_of, tokens_at_once
from wrinklefree.quant.bitlinear import quantization_lambda_of


@torch.no_grad()
def token_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Cross-entropy (nats) of every token that follows another one, float64 [B, T]; 0 elsewhere."""
    hidden_BTD = hidden_states(
        model,
        batch.tokens_BT,
        batch.positions_BT,
        causal_document_mask(batch.document_ids_BT),
    )
    scored_BT = batch.has_predecessor_BT
    row_N, position_N = scored_BT.nonzero(as_tuple=True)
    loss_N = cross_entropies(
        model, hidden_BTD[row_N, position_N - 1], batch.tokens_BT[row_N, position_N]
    )
    loss_BT = torch.zeros(scored_BT.shape, dtype=torch.float64, device=scored_BT.device)
    loss_BT[row_N, position_N] = loss_N.double()
    return loss_BT


def cross_entropies(
    model: PreTrainedModel, hidden_ND: Tensor, target_N: Tensor, mask_token_id: int | None = None
) -> Tensor:
    """Cross-entropy (nats) of each target, at least float32 [N]; the mask token is impossible.

    Without gradients: the logits of a block of targets are dropped before those of the next.
    """
    size = tokens_at_once(model.config.vocab_size)
    losses = []
    for hidden_CD, target_C in zip(hidden_ND.split(size), target_N.split(size), strict=True):
        logits_CV = loss_logits_of(model, hidden_CD, mask_token_id)
        losses.append(token_losses_of(model, logits_CV, target_C))
    return torch.cat(losses)


def row_losses(model: PreTrainedModel, batch: Batch, quantization_lambda: float) -> Tensor:
    """``mean_next_token_loss`` of every row, float64 [B]; 0 for a row where no token follows."""
    sums_B, counts_B = _sums_by_row(model, batch, quantization_lambda)
    return sums_B / counts_B.clamp(min=1)


def mean_next_token_loss(
    model: PreTrainedModel, batches: Iterable[Batch], quantization_lambda: float
) -> float:
    """Mean of :func:`token_losses` over every token that follows another one of its document.

    ``quantization_lambda`` is the strength of quantization meanwhile; without ``BitLinear`` layers
    it has no effect.
    """
    total, tokens = 0.0, 0
    for batch in batches:
        sums_B, counts_B = _sums_by_row(model, batch, quantization_lambda)
        total += sums_B.sum().item()
        tokens += int(counts_B.sum())
    assert tokens, "no token follows another one"
    return total / tokens


def _sums_by_row(
    model: PreTrainedModel, batch: Batch, quantization_lambda: float
) -> tuple[Tensor, Tensor]:
    batch = batch.to(model.device)
    with quantization_lambda_of(model, quantization_lambda):
        return token_losses(model, batch).sum(1), batch.has_predecessor_BT.sum(1)
