"""int8 activations times ternary weights in plain torch. See README.md.

Shapes: M tokens, N inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wrinklefree.kernels.quantize_activation.reference import quantize_activation


def ternary_matmul(
    codes_MN: Tensor,
    scale_M1: Tensor | None,
    weight_ON: Tensor,
    weight_scale: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``s_w / s_x (X T)``, [M, O]: exact integers, then two float32 products in a fixed order."""
    if scale_M1 is None:
        codes_MN, scale_M1 = quantize_activation(codes_MN)
    # float64 holds every integer below 2^53, in any order of the sum.
    sums_MO = (codes_MN.double() @ weight_ON.double().T).float()
    return scaled(sums_MO, scale_M1, weight_scale).to(dtype)


def scaled(sums_MO: Tensor, scale_M1: Tensor, weight_scale: Tensor) -> Tensor:
    """``sum * (1/s_x * s_w)`` of one weight scale, ``sum * 1/s_x * s_w`` of one for each output."""
    if weight_scale.ndim == 0:
        return sums_MO * (scale_M1.reciprocal() * weight_scale)
    return sums_MO * scale_M1.reciprocal() * weight_scale.reshape(1, -1)
