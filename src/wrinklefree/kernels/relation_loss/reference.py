"""Divergence of relations by its definition. See README.md.

Shapes: G relation matrices, B rows of the batch, T tokens, E and F sizes of a relation head.
"""

from __future__ import annotations

import torch
from torch import Tensor


def relation_divergence(
    student_GTE: Tensor, teacher_GTF: Tensor, piece_BT: Tensor, *, causal: bool, temperature: float
) -> Tensor:
    """KL(teacher || student) of every row of every relation matrix, nats [G, T]."""
    same_BTT = (piece_BT[:, :, None] == piece_BT[:, None, :]) & (piece_BT >= 0)[:, None, :]
    same_BTT = same_BTT.tril() if causal else same_BTT
    batch, tokens = piece_BT.shape
    mask_BTT = same_BTT | torch.eye(tokens, dtype=torch.bool, device=piece_BT.device)
    mask_GTT = mask_BTT.repeat_interleave(len(student_GTE) // batch, dim=0)
    teacher_log, student_log = (
        (rows @ rows.mT / temperature).masked_fill(~mask_GTT, float("-inf")).log_softmax(-1)
        for rows in (teacher_GTF, student_GTE)
    )
    gaps_GTT = (teacher_log - student_log).masked_fill(~mask_GTT, 0.0)
    return (teacher_log.exp() * gaps_GTT).sum(-1)
