"""Kullback-Leibler divergence that survives impossible outcomes."""

from __future__ import annotations

from torch import Tensor


def kl_divergence(teacher_log: Tensor, student_log: Tensor) -> Tensor:
    """KL(teacher || student) over the last dimension, in nats; shape [..., V] to [...].

    Both arguments are log probabilities. An outcome that the teacher excludes (-inf) counts
    nothing, whatever the student gives it, and gets no gradient.
    """
    impossible = teacher_log == float("-inf")
    difference = (teacher_log - student_log).masked_fill(impossible, 0.0)
    return (teacher_log.exp() * difference).sum(-1)
