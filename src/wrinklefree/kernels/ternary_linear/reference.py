"""The product of int8 activations and ternary weights in int64, and its gradients in plain torch.

See README.md. Shapes: M tokens (any leading dimensions), N inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wrinklefree.kernels.ternary_matmul.reference import scaled


def integer_sums(codes_MN: Tensor, weight_ON: Tensor) -> Tensor:
    """``X T`` in int64, [M, O]: no product of machines is asked, so none can be wrong."""
    return codes_MN.to(torch.int64) @ weight_ON.to(torch.int64).T


def ternary_linear(
    codes_MN: Tensor, scale_M1: Tensor, weight_ON: Tensor, weight_scale: Tensor
) -> Tensor:
    """``s_w / s_x (X T)`` in the dtype of the scales, [M, O], rounded as README.md says."""
    sums_MO = integer_sums(codes_MN, weight_ON).to(scale_M1.dtype)
    return scaled(sums_MO, scale_M1, weight_scale)


def ternary_linear_gradients(
    gradient_MO: Tensor, codes_MN: Tensor, scale_M1: Tensor, weight_ON: Tensor, weight_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Straight-through gradients of the activations, [M, N], and of the weight, [O, N]."""
    seen_MN = codes_MN.to(gradient_MO.dtype) / scale_M1
    seen_ON = weight_ON.to(gradient_MO.dtype) * weight_scale
    tokens_MO = gradient_MO.flatten(0, -2)
    return gradient_MO @ seen_ON, tokens_MO.T @ seen_MN.flatten(0, -2)
