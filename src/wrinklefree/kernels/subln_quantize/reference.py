"""RMSNorm with a gain (SubLN), then int8 codes per token, in plain torch. See README.md.

Shapes: M tokens (any leading dimensions), N features of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wrinklefree.kernels.quantize_activation.reference import quantize_activation


def normalized(activation_MN: Tensor, gain_N: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The normed activation, in the wider dtype of activation and gain, and 1 / RMS, [..., 1]."""
    value_MN = activation_MN.to(_compute_dtype(activation_MN))
    inverse_M1 = (value_MN.pow(2).mean(-1, keepdim=True) + epsilon).rsqrt()
    return gain_N * (value_MN * inverse_M1).to(activation_MN.dtype), inverse_M1


def subln_quantize(
    activation_MN: Tensor, gain_N: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (int8) and scale [..., 1] of the normed activation, and 1 / RMS, [..., 1]."""
    normed_MN, inverse_M1 = normalized(activation_MN, gain_N, epsilon)
    return *quantize_activation(normed_MN), inverse_M1


def subln_gradients(
    gradient_MN: Tensor, activation_MN: Tensor, gain_N: Tensor, inverse_M1: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of activation and gain, given that of the normed activation."""
    compute = _compute_dtype(activation_MN)
    unit_MN = activation_MN.to(compute) * inverse_M1
    weighted_MN = gradient_MN.to(compute) * gain_N
    projection_M1 = (weighted_MN * unit_MN).mean(-1, keepdim=True)
    to_activation_MN = inverse_M1 * (weighted_MN - unit_MN * projection_M1)
    rounded_MN = unit_MN.to(activation_MN.dtype)
    to_gain_N = (gradient_MN.to(compute) * rounded_MN).flatten(0, -2).sum(0)
    return to_activation_MN.to(activation_MN.dtype), to_gain_N.to(gain_N.dtype)


def _compute_dtype(activation_MN: Tensor) -> torch.dtype:
    return torch.promote_types(activation_MN.dtype, torch.float32)
