"""int8 activations times ternary weights: Triton on CUDA, plain torch elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from wrinklefree.kernels.launch import has_triton
from wrinklefree.kernels.ternary_matmul import reference


def ternary_matmul(
    codes_MN: Tensor,
    scale_M1: Tensor | None,
    weight_ON: Tensor,
    weight_scale: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``s_w / s_x (X T)`` over exact integers.

    Parameters
    ----------
    codes_MN, scale_M1 : int8 [M, N] and float32 [M, 1], of ``quantize_activation``; or what that
        would be given, [M, N] in float32 or less, and None, to the same bits.
    weight_ON : int8 in {-1, 0, 1}.
    weight_scale : float32, what a code of 1 stands for: a scalar, or [O, 1].
    dtype : of the result; computed in float32 and rounded once.

    Returns
    -------
    result_MO : ``dtype``.
    """
    if has_triton(codes_MN):
        from wrinklefree.kernels.ternary_matmul import triton

        return triton.ternary_matmul(codes_MN, scale_M1, weight_ON, weight_scale, dtype)
    return reference.ternary_matmul(codes_MN, scale_M1, weight_ON, weight_scale, dtype)
