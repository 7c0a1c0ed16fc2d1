"""Who may attend to whom.

Shapes: B rows, T tokens of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def causal_document_mask(document_ids_BT: Tensor) -> Tensor:
    """bool [B, 1, T, T]: True where the query (third) may attend to the key (fourth).

    A token sees itself and the earlier tokens of its own document. Padding, document -1, counts as
    a document of its own: every row keeps its diagonal, so that no softmax is over nothing.
    """
    length = document_ids_BT.shape[1]
    same_BTT = document_ids_BT[:, :, None] == document_ids_BT[:, None, :]
    past_TT = torch.ones(length, length, dtype=torch.bool, device=document_ids_BT.device).tril_()
    return (same_BTT & past_TT)[:, None]
