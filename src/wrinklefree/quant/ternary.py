"""Quantization of BitNet b1.58 (arXiv 2402.17764) as values rather than codes.

Shapes: O output features, N input features, M tokens (any leading dimensions).
"""

from __future__ import annotations

import torch
from torch import Tensor

from wrinklefree.kernels.quantize_activation import quantize_activation as activation_codes
from wrinklefree.kernels.quantize_activation.reference import activation_scale
from wrinklefree.kernels.quantize_weight import quantize_weight as ternary_codes

__all__ = ["activation_codes", "quantize_activation", "quantize_weight", "ternary_codes"]


def quantize_weight(weight_ON: Tensor) -> Tensor:
    """``codes * scale`` of a weight: three values, ``-s``, ``0`` and ``s``, in the weight's dtype.

    Not idempotent: the absmean of the result is ``s`` times the share of non-zero codes.
    """
    codes_ON, scale = ternary_codes(weight_ON)
    return codes_ON.to(scale.dtype).mul_(scale).to(weight_ON.dtype)


def quantize_activation(activation_MN: Tensor) -> Tensor:
    """``codes / scale`` of activations, one scale per token, in the activation's dtype."""
    if activation_MN.is_cuda:
        codes_MN, scale_M1 = activation_codes(activation_MN)
        return codes_MN.to(scale_M1.dtype).div_(scale_M1).to(activation_MN.dtype)
    # The same values without the int8 detour, in place: on a CPU memory traffic is what it costs.
    # The clamp is left out since |x * s| < 127.5 for every finite x.
    scale_M1 = activation_scale(activation_MN)
    return torch.mul(activation_MN, scale_M1).round_().div_(scale_M1).to(activation_MN.dtype)
