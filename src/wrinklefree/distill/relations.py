"""Distillation of attention relations at one layer (BitDistill, arXiv 2510.13998, section 3.3).

As in MiniLMv2 (2012.15828), a relation is a row of ``softmax(A Aᵀ / temperature)``, where A are the
queries, keys or values of a layer, cut into relation heads and L2-normalised. It is not the matrix
of attention probabilities, so attention itself runs in whatever fused implementation the model has;
the projections are read off its arguments: after qk-norm and rotary embedding, and before keys and
values are repeated for grouped queries. Teacher and student may differ in their number of attention
heads, as relation heads are counted anew.

Shapes: B rows, T tokens of a row, H attention heads, K key/value heads, D head size, R relation
heads, E relation head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from wrinklefree.distill.divergence import kl_divergence
from wrinklefree.errors import UserError
from wrinklefree.models.projections import Projections


def relation_layer(model: PreTrainedModel, fraction: float) -> int:
    """Index of the layer at a fraction of the depth: 0.8 of 28 layers is 22; 1 is the last one."""
    layers = model.config.num_hidden_layers
    return min(round(fraction * layers), layers - 1)


def relation_mask(piece_BT: Tensor, *, causal: bool) -> Tensor:
    """Which tokens a relation compares: bool [B, T, T], the query's row first.

    Tokens of the same document piece (-1 is padding), with ``causal`` only the query's own past;
    always the token itself.
    """
    query_BT1, key_B1T = piece_BT[:, :, None], piece_BT[:, None, :]
    mask_BTT = (query_BT1 == key_B1T) & (query_BT1 >= 0)
    mask_BTT = mask_BTT.tril() if causal else mask_BTT
    return mask_BTT | torch.eye(piece_BT.shape[1], dtype=torch.bool, device=piece_BT.device)


def relations_divergence(
    teacher: Projections, student: Projections, mask_BTT: Tensor, *, heads: int, temperature: float
) -> Tensor:
    """KL(teacher || student) of every token's relations, nats [B, T].

    The mean over relation heads, the sum over queries, keys and values. In at least float32.
    Nothing is divided by the number of layers or tokens: the caller averages over tokens.
    """
    pairs = (
        (teacher.query_BHTD, student.query_BHTD),
        (teacher.key_BKTD, student.key_BKTD),
        (teacher.value_BKTD, student.value_BKTD),
    )
    divergence_BT = torch.zeros((), device=mask_BTT.device)
    for teacher_BHTD, student_BHTD in pairs:
        teacher_log = _log_relations(teacher_BHTD, mask_BTT, heads, temperature)
        student_log = _log_relations(student_BHTD, mask_BTT, heads, temperature)
        divergence_BT = divergence_BT + kl_divergence(teacher_log, student_log).mean(1)
    return divergence_BT


def _log_relations(x_BHTD: Tensor, mask_BTT: Tensor, heads: int, temperature: float) -> Tensor:
    """Log of ``softmax(A Aᵀ / temperature)`` over the allowed tokens, [B, R, T, T]."""
    batch, attention_heads, length, size = x_BHTD.shape
    if attention_heads * size % heads:
        raise UserError(
            f"distill relations.heads is {heads}, which does not divide a projection of"
            f" {attention_heads} heads of size {size}; choose a divisor of {attention_heads * size}"
        )
    x_BTRE = x_BHTD.transpose(1, 2).reshape(batch, length, heads, -1)
    x_BRTE = x_BTRE.transpose(1, 2).to(torch.promote_types(x_BHTD.dtype, torch.float32))
    a_BRTE = functional.normalize(x_BRTE, dim=-1)
    with torch.autocast(a_BRTE.device.type, enabled=False):
        scores_BRTT = a_BRTE @ a_BRTE.transpose(-1, -2) / temperature
    return scores_BRTT.masked_fill(~mask_BTT[:, None], float("-inf")).log_softmax(-1)
