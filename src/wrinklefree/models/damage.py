"""What surgery costs, in nats per token.

Shapes: B rows, T tokens of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.forward import next_token_logits
from wrinklefree.quant.bitlinear import quantization_lambda_of

if TYPE_CHECKING:
    from wrinklefree.data.loader import Batch


@torch.no_grad()
def mean_next_token_loss(
    model: PreTrainedModel, batches: Iterable[Batch], quantization_lambda: float
) -> float:
    """Mean cross-entropy (nats) of every token that follows another one of its document.

    ``quantization_lambda`` is the strength of quantization meanwhile; without ``BitLinear`` layers
    it has no effect.
    """
    total, tokens = 0.0, 0
    with quantization_lambda_of(model, quantization_lambda):
        for batch in batches:
            ids_BT = batch.document_ids_BT.to(model.device)
            tokens_BT = batch.tokens_BT.to(model.device)
            logits_BTV = next_token_logits(
                model, tokens_BT, batch.positions_BT.to(model.device), causal_document_mask(ids_BT)
            )
            follows_BT = (ids_BT[:, 1:] == ids_BT[:, :-1]) & (ids_BT[:, 1:] >= 0)
            losses = F.cross_entropy(
                logits_BTV[:, :-1][follows_BT], tokens_BT[:, 1:][follows_BT], reduction="none"
            )
            total += losses.sum(dtype=torch.float64).item()
            tokens += losses.numel()
    assert tokens, "no token follows another one"
    return total / tokens
