"""The two symmetric products of Newton-Schulz: Triton on CUDA, plain torch elsewhere.

Shapes: K matrices (none, or one leading dimension) of R rows and C columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wrinklefree.kernels.launch import has_triton
from wrinklefree.kernels.symmetric_product import reference


def gram(x_KRC: Tensor) -> Tensor:
    """``X Xᵀ``, [K, R, R], in the type of ``X``, of any strides; sums in at least float32."""
    if _has_kernel(x_KRC):
        from wrinklefree.kernels.symmetric_product import triton

        return triton.gram(x_KRC)
    return reference.gram(x_KRC)


def polynomial(gram_KRR: Tensor, b: float, c: float) -> Tensor:
    """``b A + c A A``, [K, R, R], of symmetric matrices, which is not checked.

    In the type of ``A``; sums in at least float32.
    """
    if _has_kernel(gram_KRR):
        from wrinklefree.kernels.symmetric_product import triton

        return triton.polynomial(gram_KRR, b, c)
    return reference.polynomial(gram_KRR, b, c)


def _has_kernel(x_KRC: Tensor) -> bool:
    return has_triton(x_KRC, torch.float32, torch.bfloat16)
