"""Distillation of the next-token distribution (BitDistill, arXiv 2510.13998, eq. 10).

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wrinklefree.distill.divergence import kl_divergence


def logits_divergence(
    teacher_NV: Tensor, student_NV: Tensor, *, temperature: float, temperature_squared: bool
) -> Tensor:
    """``KL(softmax(teacher / temperature) || softmax(student / temperature))`` per token, nats [N].

    Computed in at least float32. ``temperature_squared`` multiplies by the temperature squared,
    which keeps the gradient's size about the same at any temperature: the paper's code does so, its
    text doesn't. Logits may be -inf where both models exclude a token.
    """
    teacher_log_NV, student_log_NV = (
        (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)
        for logits in (teacher_NV, student_NV)
    )
    divergence_N = kl_divergence(teacher_log_NV, student_log_NV)
    return divergence_N * temperature**2 if temperature_squared else divergence_N
