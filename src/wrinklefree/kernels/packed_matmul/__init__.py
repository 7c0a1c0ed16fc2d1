"""int8 activations times packed ternary weights: Triton on CUDA, plain torch elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from wrinklefree.kernels.launch import has_triton
from wrinklefree.kernels.packed_matmul import reference


def packed_matmul(
    codes_MN: Tensor,
    scale_M1: Tensor | None,
    packed_QN: Tensor,
    weight_scale: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``s_w / s_x (X T)`` for the few tokens of generation, where reading T is what takes time.

    Parameters
    ----------
    codes_MN, scale_M1 : int8 [M, N] and float32 [M, 1], of ``quantize_activation``; or what that
        would be given, [M, N] in float32 or less, and None, to the same bits.
    packed_QN : uint8 [O / 4, N], of ``quant.packing.pack_ternary``.
    weight_scale : float32, what a code of 1 stands for: a scalar, or [O, 1].
    dtype : of the result; computed in float32 and rounded once.

    Returns
    -------
    result_MO : ``dtype``; the bits of ``ternary_matmul``.
    """
    if has_triton(codes_MN):
        from wrinklefree.kernels.packed_matmul import triton

        return triton.packed_matmul(codes_MN, scale_M1, packed_QN, weight_scale, dtype)
    return reference.packed_matmul(codes_MN, scale_M1, packed_QN, weight_scale, dtype)
