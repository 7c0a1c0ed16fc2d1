"""Distillation of the next-token distribution (BitDistill, arXiv 2510.13998, eq. 10).

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wrinklefree.distill.divergence import kl_divergence
from wrinklefree.distill.settings import Direction


def logits_divergence(
    teacher_NV: Tensor,
    student_NV: Tensor,
    target_N: Tensor,
    *,
    temperature: float,
    temperature_squared: bool,
    direction: Direction = "forward",
) -> Tensor:
    """How far the student's distribution is from the teacher's, per token, in nats [N].

    Computed in at least float32. Logits may be -inf where both models exclude a token.

    Parameters
    ----------
    target_N : the tokens of the text, int64; only ``confidence`` reads them.
    temperature : softens both distributions.
    temperature_squared : multiply by the temperature squared, which keeps the gradient's size about
        the same at any temperature: the paper's code does so, its text doesn't.
    direction : ``forward``, KL(teacher || student), spreads the student over all that the teacher
        deems possible; ``reverse``, KL(student || teacher), keeps it where the teacher is.
        ``confidence`` weighs both by the teacher's probability ``c`` of the text's token, at
        temperature 1: ``c reverse + (1 - c) forward`` (BitDistiller, arXiv 2402.10631, eq. 5, has
        the mean of ``c`` over the data in its place).
    """
    teacher_log_NV, student_log_NV = (
        log_probabilities(logits_NV, temperature) for logits_NV in (teacher_NV, student_NV)
    )
    if direction == "forward":
        divergence_N = kl_divergence(teacher_log_NV, student_log_NV)
    else:
        divergence_N = kl_divergence(student_log_NV, teacher_log_NV)
    if direction == "confidence":
        log_NV = log_probabilities(teacher_NV, 1.0)
        confidence_N = log_NV.gather(-1, target_N[:, None])[:, 0].exp()
        forward_N = kl_divergence(teacher_log_NV, student_log_NV)
        divergence_N = torch.lerp(forward_N, divergence_N, confidence_N)
    return divergence_N * temperature**2 if temperature_squared else divergence_N


def log_probabilities(logits_NV: Tensor, temperature: float) -> Tensor:
    """``log_softmax(logits / temperature)`` in at least float32."""
    dtype = torch.promote_types(logits_NV.dtype, torch.float32)
    return (logits_NV.to(dtype) / temperature).log_softmax(-1)
