"""Logits where they are asked for, and nowhere else.

The head is a product with the whole vocabulary; over the rows without a target it is wasted.

Shapes: B rows, T tokens of a row, N selected tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel


def hidden_states(
    model: PreTrainedModel, tokens_BT: Tensor, positions_BT: Tensor, mask_B1TT: Tensor
) -> Tensor:
    """The decoder's output after its last norm, [B, T, D]; arguments as ``next_token_logits``."""
    assert mask_B1TT.ndim == 4, "a mask of fewer dimensions would be combined with a causal one"
    return model.get_decoder()(
        input_ids=tokens_BT,
        position_ids=positions_BT,
        attention_mask=mask_B1TT,
        use_cache=False,
    ).last_hidden_state


def logits_of(model: PreTrainedModel, hidden_ND: Tensor) -> Tensor:
    """Logits of selected rows, at least float32, [N, V]."""
    head = model.get_output_embeddings()
    assert head is not None, "a causal language model has a head"
    logits_NV = head(hidden_ND)
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))


def sum_by_row(values_N: Tensor, row_N: Tensor, rows: int) -> Tensor:
    """Sum of the values of each row, [rows], without a gradient; ``row_N`` is int64."""
    return values_N.new_zeros(rows).index_add_(0, row_N, values_N.detach())
