"""A scale that is trained with the weights: ParetoQ's stretched elastic quantization (2502.02631).

``Q = alpha round(1.5 clip(W / alpha, -.99, .99)) / 1.5``: three levels, of which a code of 1 is
``2/3 alpha``. Codes change at ``alpha / 3``, half of that, as with every other scale.

Shapes: O output features, N input features; V vectors of L weights that share a scale (V L = O N).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wrinklefree.kernels.quantize_weights.reference import MINIMUM_SCALE, nearest_codes

CLIP = 0.99
"""Weights beyond this times alpha have no gradient at full strength."""
LEVEL = 2 / 3
"""What a code of 1 stands for, in alphas."""


def alpha_of(scale_V1: Tensor) -> Tensor:
    """The alphas, [V], with which codes and values are those of the scales."""
    return scale_V1[:, 0] / LEVEL


def learned_scale(alpha_V: Tensor) -> Tensor:
    """What a code of 1 stands for, [V, 1], above 0 whatever training made of alpha."""
    return (alpha_V[:, None] * LEVEL).clamp(min=MINIMUM_SCALE)


class LearnedScale(torch.autograd.Function):
    """``W + strength (Q - W)``, with gradients for the weight [O, N] and for alpha [V].

    The gradient of W is passed on inside of the clip; outside only the share that is not quantized
    is. That of alpha is ``(Q - W) / alpha`` inside and the sign of W outside, summed over the
    vector, times the strength and ``1 / sqrt(L)``, which keeps it in proportion to the weights'.
    """

    @staticmethod
    def forward(ctx: Any, weight_ON: Tensor, alpha_V: Tensor, strength: float) -> Tensor:
        """What a layer multiplies by, [O, N]."""
        ctx.save_for_backward(weight_ON, alpha_V)
        ctx.strength = strength
        if strength == 0.0:
            return weight_ON.view_as(weight_ON)
        scale_V1 = learned_scale(alpha_V)
        codes_VL = nearest_codes(weight_ON.reshape(len(alpha_V), -1), scale_V1)
        quantized_ON = codes_VL.mul_(scale_V1).to(weight_ON.dtype).reshape(weight_ON.shape)
        return quantized_ON if strength == 1.0 else torch.lerp(weight_ON, quantized_ON, strength)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of the weight and of alpha."""
        gradient_ON, strength = gradients[0], ctx.strength
        weight_ON, alpha_V = ctx.saved_tensors
        if strength == 0.0:
            return gradient_ON, torch.zeros_like(alpha_V), None
        scale_V1 = learned_scale(alpha_V)
        weight_VL = weight_ON.reshape(len(alpha_V), -1)
        ratio_VL = weight_VL * (LEVEL / scale_V1)
        inside_VL = ratio_VL.abs() < CLIP
        slope_VL = nearest_codes(weight_VL, scale_V1).mul_(LEVEL).sub_(ratio_VL)
        slope_VL = torch.where(inside_VL, slope_VL, ratio_VL.sign())
        gradient_VL = gradient_ON.reshape(weight_VL.shape)
        sum_V = (slope_VL.mul_(gradient_VL)).sum(1, dtype=torch.float64)
        alpha_gradient_V = (sum_V * (strength / weight_VL.shape[1] ** 0.5)).to(alpha_V.dtype)
        passed_VL = torch.where(inside_VL, gradient_VL, gradient_VL * (1.0 - strength))
        return passed_VL.reshape(weight_ON.shape), alpha_gradient_V, None
