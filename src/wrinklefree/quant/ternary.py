"""Quantization of BitNet b1.58 (arXiv 2402.17764) as values rather than codes.

Shapes: O output features, N input features, M tokens (any leading dimensions); V vectors of L
weights that share a scale (V L = O N).
"""

from __future__ import annotations

import torch
from torch import Tensor

from wrinklefree.kernels.quantize_activation import quantize_activation as activation_codes
from wrinklefree.kernels.quantize_activation.reference import activation_scale
from wrinklefree.kernels.quantize_weights.reference import nearest_codes
from wrinklefree.quant.learned_scale import learned_scale
from wrinklefree.quant.scales import fitted_scale
from wrinklefree.quant.settings import Scale

__all__ = ["activation_codes", "quantize_activation", "quantize_weight", "ternary_codes"]


def ternary_codes(
    weight_ON: Tensor, scale: Scale = "absmean", vectors: int = 1, alpha_V: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Codes in {-1, 0, 1} of a weight and what a code of 1 stands for.

    Parameters
    ----------
    vectors : how many scales the weight has; see ``count_vectors``.
    alpha_V : of a ``learned`` scale.

    Returns
    -------
    codes_ON : int8.
    scale : float32 (float64 for a float64 weight), a scalar, [O, 1] or [O, N]: what fits the codes.
    """
    weight_VL = weight_ON.reshape(vectors, -1)
    scale_V1 = fitted_scale(weight_VL, scale) if alpha_V is None else learned_scale(alpha_V)
    codes_VL = nearest_codes(weight_VL, scale_V1)
    codes_ON = codes_VL.to(torch.int8).reshape(weight_ON.shape)
    if vectors == 1:
        return codes_ON, scale_V1.reshape(())
    rows = len(weight_ON)
    if rows % vectors == 0:
        return codes_ON, scale_V1.repeat_interleave(rows // vectors, 0)
    return codes_ON, scale_V1.expand_as(weight_VL).reshape(weight_ON.shape)


def quantize_weight(weight_ON: Tensor, scale: Scale = "absmean", vectors: int = 1) -> Tensor:
    """``codes * scale`` of a weight in the weight's dtype: ``-s``, ``0`` and ``s`` of each scale s.

    Not idempotent: the absmean of the result is ``s`` times the share of non-zero codes.
    """
    weight_VL = weight_ON.reshape(vectors, -1)
    scale_V1 = fitted_scale(weight_VL, scale)
    quantized_VL = nearest_codes(weight_VL, scale_V1).mul_(scale_V1)
    return quantized_VL.to(weight_ON.dtype).reshape(weight_ON.shape)


def quantize_activation(activation_MN: Tensor) -> Tensor:
    """``codes / scale`` of activations, one scale per token, in the activation's dtype."""
    if activation_MN.is_cuda:
        codes_MN, scale_M1 = activation_codes(activation_MN)
        return codes_MN.to(scale_M1.dtype).div_(scale_M1).to(activation_MN.dtype)
    # The same values without the int8 detour, in place: on a CPU memory traffic is what it costs.
    # The clamp is left out since |x * s| < 127.5 for every finite x.
    scale_M1 = activation_scale(activation_MN)
    return torch.mul(activation_MN, scale_M1).round_().div_(scale_M1).to(activation_MN.dtype)
