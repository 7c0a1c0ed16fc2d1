"""Distillation of a layer's attention relations (BitDistill, arXiv 2510.13998, section 3.3).

As in MiniLMv2 (2012.15828), a relation is a row of ``softmax(A Aᵀ / temperature)``, where A are the
queries, keys or values of a layer, cut into relation heads and L2-normalised. It is not the matrix
of attention probabilities, so attention itself runs in whatever fused implementation the model has;
the projections are read off its arguments: after qk-norm and rotary embedding, and before keys and
values are repeated for grouped queries. Teacher and student may differ in their number of attention
heads, as relation heads are counted anew.

Shapes: B rows, T tokens of a row, C of them as queries, H attention heads, K key/value heads, D
head size, R relation heads, E relation head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from wrinklefree.errors import UserError
from wrinklefree.kernels.relation_loss import relation_divergence
from wrinklefree.kernels.vocabulary_loss.reference import kl_divergence
from wrinklefree.models.projections import Projections


def relation_mask(piece_BT: Tensor, queries: slice, *, causal: bool) -> Tensor:
    """Which tokens a relation compares: bool [B, C, T], for the queries of a slice.

    Tokens of the same document piece (-1 is padding), with ``causal`` only the query's own past;
    always the token itself.
    """
    query_BC1, key_B1T = piece_BT[:, queries, None], piece_BT[:, None, :]
    key_T = torch.arange(piece_BT.shape[1], device=piece_BT.device)
    query_C1 = key_T[queries, None]
    mask_BCT = (query_BC1 == key_B1T) & (query_BC1 >= 0)
    mask_BCT = mask_BCT & (key_T <= query_C1) if causal else mask_BCT
    return mask_BCT | (key_T == query_C1)


def relation_vectors(projections: Projections, heads: int) -> list[Tensor]:
    """A of the queries, keys and values, each [B, R, T, E], at least float32."""
    return [
        _vectors(x_BHTD, heads)
        for x_BHTD in (projections.query_BHTD, projections.key_BKTD, projections.value_BKTD)
    ]


def relations_divergence(
    teacher_BRTE: Sequence[Tensor],
    student_BRTE: Sequence[Tensor],
    piece_BT: Tensor,
    queries: slice = slice(None),
    *,
    causal: bool,
    temperature: float,
) -> Tensor:
    """KL(teacher || student) of the relations of some tokens, nats [B, C].

    The mean over relation heads, the sum over queries, keys and values: ``relation_vectors`` of
    both models. Nothing is divided by the number of layers or tokens: the caller averages over
    tokens. It holds some tensors of [B, R, C, T]: a caller with long rows takes few at a time.
    """
    keys = slice(queries.stop if causal else None)  # a causal query needs no later ones
    mask_BCT = relation_mask(piece_BT, queries, causal=causal)[:, :, keys]
    divergence_BC = torch.zeros((), device=piece_BT.device)
    for pair in zip(teacher_BRTE, student_BRTE, strict=True):
        teacher_log, student_log = (
            _log_relations(a_BRTE, queries, keys, mask_BCT, temperature) for a_BRTE in pair
        )
        divergence_BC = divergence_BC + kl_divergence(teacher_log, student_log).mean(1)
    return divergence_BC


def streamed_divergence(
    teacher_BRTE: Sequence[Tensor],
    student_BRTE: Sequence[Tensor],
    piece_BT: Tensor,
    *,
    causal: bool,
    temperature: float,
) -> Tensor:
    """:func:`relations_divergence` of all tokens, [B, T], by the kernel for CUDA."""
    total_BT = torch.zeros((), device=piece_BT.device)
    for teacher, student in zip(teacher_BRTE, student_BRTE, strict=True):
        divergence_GT = relation_divergence(
            student.flatten(0, 1),
            teacher.flatten(0, 1),
            piece_BT,
            causal=causal,
            temperature=temperature,
        )
        total_BT = total_BT + divergence_GT.unflatten(0, student.shape[:2]).mean(1)
    return total_BT


def _vectors(x_BHTD: Tensor, heads: int) -> Tensor:
    batch, attention_heads, length, size = x_BHTD.shape
    if attention_heads * size % heads:
        raise UserError(
            f"distill relations.heads is {heads}, which does not divide a projection of"
            f" {attention_heads} heads of size {size}; choose a divisor of {attention_heads * size}"
        )
    x_BTRE = x_BHTD.transpose(1, 2).reshape(batch, length, heads, -1)
    x_BRTE = x_BTRE.transpose(1, 2).to(torch.promote_types(x_BHTD.dtype, torch.float32))
    return functional.normalize(x_BRTE, dim=-1)


def _log_relations(
    a_BRTE: Tensor, queries: slice, keys: slice, mask_BCT: Tensor, temperature: float
) -> Tensor:
    """Log of ``softmax(A Aᵀ / temperature)`` over the allowed tokens, [B, R, C, T]."""
    with torch.autocast(a_BRTE.device.type, enabled=False):
        # Keys before queries: the order in which autograd meets them sets the last bits.
        key_BRET = a_BRTE[:, :, keys].mT
        scores_BRCT = a_BRTE[:, :, queries] @ key_BRET / temperature
    return scores_BRCT.masked_fill(~mask_BCT[:, None], float("-inf")).log_softmax(-1)
