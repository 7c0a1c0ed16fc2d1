"""Cross-entropy and divergence over a vocabulary: Triton on CUDA, plain torch elsewhere.

Logits are read as they are and float32 is computed in registers, so no copy of them is made.
"""

from __future__ import annotations

from torch import Tensor

from wrinklefree.kernels.launch import FLOATS, has_triton
from wrinklefree.kernels.vocabulary_loss import reference


def has_kernel(logits_NV: Tensor) -> bool:
    """Whether a Triton kernel reads these logits, of any of its types, in place of float32."""
    return has_triton(logits_NV, *FLOATS)


def cross_entropy(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """Of each target, in nats, at least float32 [N]; differentiable in the logits."""
    if has_kernel(logits_NV):
        from wrinklefree.kernels.vocabulary_loss import triton

        return triton.cross_entropy(logits_NV, target_N)
    return reference.cross_entropy(logits_NV, target_N)


def divergence(
    teacher_NV: Tensor, student_NV: Tensor, *, temperature: float, reverse: bool
) -> Tensor:
    """KL of each row, in nats, at least float32 [N]; differentiable in the student's logits alone.

    Parameters
    ----------
    teacher_NV, student_NV : logits; -inf where both exclude a token, which then counts nothing and
        gets no gradient.
    temperature : softens both distributions.
    reverse : KL(student || teacher) in place of KL(teacher || student).
    """
    if has_kernel(student_NV):
        from wrinklefree.kernels.vocabulary_loss import triton

        return triton.divergence(teacher_NV, student_NV, temperature, reverse)
    return reference.divergence(teacher_NV, student_NV, temperature, reverse)
