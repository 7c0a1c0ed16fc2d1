"""Ternary codes of many weights, each with one scale, in plain torch. See README.md.

Shapes: V vectors of L weights that share a scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

FittedScale = Literal["absmean", "least_squares"]

ITERATIONS = 10
MINIMUM_SCALE = 1e-5


def quantize_weights(weights: Sequence[Tensor], scale: FittedScale) -> list[tuple[Tensor, Tensor]]:
    """Of each weight its codes, int8 in {-1, 0, 1}, and the scale, a scalar."""
    quantized: list[tuple[Tensor, Tensor]] = []
    for weight_ON in weights:
        scale_11 = FITS[scale](weight_ON.reshape(1, -1))
        codes_ON = nearest_codes(weight_ON, scale_11.reshape(()))
        quantized.append((codes_ON.to(torch.int8), scale_11.reshape(())))
    return quantized


def nearest_codes(weight: Tensor, scale: Tensor) -> Tensor:
    """``clamp(round(W / s), -1, 1)`` in the scale's dtype, half to even: whatever the scale."""
    return (weight.to(scale.dtype) / scale).round_().clamp_(-1, 1)


def absmean_scale(weight_VL: Tensor) -> Tensor:
    """``max(mean|W|, 1e-5)`` of each vector, [V, 1]."""
    mean_V1 = weight_VL.abs().mean(1, keepdim=True, dtype=torch.float64)
    return rounded_scale(mean_V1, weight_VL)


def least_squares_scale(weight_VL: Tensor) -> Tensor:
    """``s = <W, T> / <T, T>`` with the codes ``T`` of the last ``s``, 10 times from absmean."""
    magnitude_VL, scale_V1 = weight_VL.abs(), absmean_scale(weight_VL)
    # One buffer for all: fresh temporaries would be most of the time on a CPU.
    chosen_VL = torch.empty_like(magnitude_VL)
    for _ in range(ITERATIONS):
        torch.gt(magnitude_VL, scale_V1 / 2, out=chosen_VL)
        count_V1 = chosen_VL.sum(1, keepdim=True, dtype=torch.float64)
        total_V1 = chosen_VL.mul_(magnitude_VL).sum(1, keepdim=True, dtype=torch.float64)
        fitted_V1 = rounded_scale(total_V1 / count_V1, weight_VL)
        scale_V1 = torch.where(count_V1 > 0, fitted_V1, scale_V1)
    return scale_V1


def rounded_scale(scale_V1: Tensor, weight_VL: Tensor) -> Tensor:
    """A scale as it is used: at least 1e-5, in float32 (float64 for a float64 weight)."""
    compute_dtype = torch.promote_types(weight_VL.dtype, torch.float32)
    return scale_V1.to(compute_dtype).clamp_(min=MINIMUM_SCALE)


FITS: dict[FittedScale, Callable[[Tensor], Tensor]] = {
    "absmean": absmean_scale,
    "least_squares": least_squares_scale,
}
