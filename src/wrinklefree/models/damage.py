"""What surgery costs and what a row is hard by, in nats per token.

Shapes: B rows, T tokens of a row, V vocabulary, N tokens that follow another one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.forward import next_token_logits
from wrinklefree.quant.bitlinear import quantization_lambda_of

if TYPE_CHECKING:
    from wrinklefree.mixture.loader import Batch


def mean_next_token_loss(
    model: PreTrainedModel, batches: Iterable[Batch], quantization_lambda: float
) -> float:
    """Mean cross-entropy (nats) of every token that follows another one of its document.

    ``quantization_lambda`` is the strength of quantization meanwhile; without ``BitLinear`` layers
    it has no effect.
    """
    total, tokens = 0.0, 0
    for batch in batches:
        losses_N, _ = _next_token_losses(model, batch, quantization_lambda)
        total += losses_N.sum(dtype=torch.float64).item()
        tokens += losses_N.numel()
    assert tokens, "no token follows another one"
    return total / tokens


def row_losses(model: PreTrainedModel, batch: Batch, quantization_lambda: float) -> Tensor:
    """``mean_next_token_loss`` of every row, float64 [B]; 0 for a row where no token follows."""
    losses_N, row_N = _next_token_losses(model, batch, quantization_lambda)
    rows = len(batch.tokens_BT)
    sums_B = torch.zeros(rows, dtype=torch.float64, device=losses_N.device)
    sums_B.index_add_(0, row_N, losses_N.double())
    return sums_B / torch.bincount(row_N, minlength=rows).clamp(min=1)


@torch.no_grad()
def _next_token_losses(
    model: PreTrainedModel, batch: Batch, quantization_lambda: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every token that follows another one, and its row, both [N]."""
    batch = batch.to(model.device)
    tokens_BT = batch.tokens_BT
    with quantization_lambda_of(model, quantization_lambda):
        logits_BTV = next_token_logits(
            model, tokens_BT, batch.positions_BT, causal_document_mask(batch.document_ids_BT)
        )
    row_N, position_N = batch.has_predecessor_BT.nonzero(as_tuple=True)
    losses_N = F.cross_entropy(
        logits_BTV[row_N, position_N - 1], tokens_BT[row_N, position_N], reduction="none"
    )
    return losses_N, row_N
