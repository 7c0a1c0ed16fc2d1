"""Divergence of relations between tokens in memory linear in tokens: a Triton kernel, on CUDA only.

Elsewhere ``distill.relations`` goes by blocks of queries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wrinklefree.kernels.launch import has_triton


def has_kernel(student_GTE: Tensor) -> bool:
    """Whether :func:`relation_divergence` can run on this tensor."""
    return has_triton(student_GTE, torch.float32, torch.bfloat16)


def relation_divergence(
    student_GTE: Tensor, teacher_GTF: Tensor, piece_BT: Tensor, *, causal: bool, temperature: float
) -> Tensor:
    """KL(teacher || student) of every row of every relation matrix, nats float32 [G, T].

    Parameters
    ----------
    student_GTE, teacher_GTF : rows of norm 1 (or 0), the heads of a batch row one after another;
        only the student's get a gradient.
    piece_BT : the document piece of a token, -1 for padding; B divides G.
    """
    from wrinklefree.kernels.relation_loss import triton

    choices = {"causal": causal, "temperature": temperature}
    return triton.relation_divergence(student_GTE, teacher_GTF, piece_BT, **choices)
