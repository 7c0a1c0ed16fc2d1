"""Distillation of the next-token distribution (BitDistill, arXiv 2510.13998, eq. 10).

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from wrinklefree.distill.settings import Direction
from wrinklefree.kernels.vocabulary_loss import cross_entropy, divergence


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
    of = partial(divergence, teacher_NV, student_NV, temperature=temperature)
    divergence_N = of(reverse=direction != "forward")
    if direction == "confidence":
        confidence_N = cross_entropy(teacher_NV, target_N).neg().exp()
        divergence_N = torch.lerp(of(reverse=False), divergence_N, confidence_N)
    return divergence_N * temperature**2 if temperature_squared else divergence_N
