"""Absmean ternary codes in plain torch (arXiv 2402.17764). See README.md.

Shapes: O rows of the weight, N columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

MINIMUM_SCALE = 1e-5


def absmean(weight_ON: Tensor) -> Tensor:
    """``max(mean|W|, 1e-5)``, a scalar in float32 (float64 for a float64 weight).

    Summed in float64: rounded to float32, the result no longer depends on the order of the sum,
    hence on the device or the number of threads.
    """
    compute_dtype = torch.promote_types(weight_ON.dtype, torch.float32)
    mean = weight_ON.abs().mean(dtype=torch.float64)
    return mean.to(compute_dtype).clamp_(min=MINIMUM_SCALE)


def quantize_weight(weight_ON: Tensor) -> tuple[Tensor, Tensor]:
    """``clamp(round(W / s), -1, 1)`` as int8 and ``s = absmean(W)``; ties round to even."""
    scale = absmean(weight_ON)
    codes_ON = (weight_ON.to(scale.dtype) / scale).round_().clamp_(-1, 1)
    return codes_ON.to(torch.int8), scale
