"""Losses over a vocabulary by their definitions. See README.md.

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """Nats of each target, at least float32 [N]."""
    return functional.cross_entropy(widened(logits_NV), target_N, reduction="none")


def divergence(teacher_NV: Tensor, student_NV: Tensor, temperature: float, reverse: bool) -> Tensor:
    """KL(teacher || student), or with ``reverse`` KL(student || teacher), at least float32 [N]."""
    teacher_log_NV, student_log_NV = (
        log_probabilities(logits_NV, temperature) for logits_NV in (teacher_NV, student_NV)
    )
    if reverse:
        return kl_divergence(student_log_NV, teacher_log_NV)
    return kl_divergence(teacher_log_NV, student_log_NV)


def log_probabilities(logits_NV: Tensor, temperature: float) -> Tensor:
    """``log_softmax(logits / temperature)`` in at least float32."""
    return (widened(logits_NV) / temperature).log_softmax(-1)


def kl_divergence(teacher_log: Tensor, student_log: Tensor) -> Tensor:
    """KL(teacher || student) over the last dimension, in nats; shape [..., V] to [...].

    Both arguments are log probabilities. An outcome that the teacher excludes (-inf) counts
    nothing, whatever the student gives it, and gets no gradient.
    """
    impossible = teacher_log == float("-inf")
    difference = (teacher_log - student_log).masked_fill(impossible, 0.0)
    return (teacher_log.exp() * difference).sum(-1)


def widened(logits_NV: Tensor) -> Tensor:
    """The same numbers in at least float32."""
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
