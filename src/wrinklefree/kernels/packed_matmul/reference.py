"""int8 activations times ternary weights of two bits each, in plain torch. See README.md.

Shapes: M tokens, N inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wrinklefree.kernels.ternary_matmul.reference import ternary_matmul

CODES_PER_BYTE = 4


def packed_matmul(
    codes_MN: Tensor,
    scale_M1: Tensor | None,
    packed_QN: Tensor,
    weight_scale: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``ternary_matmul`` with the weight's codes unpacked first."""
    quarters = [(packed_QN >> (2 * index)) & 3 for index in range(CODES_PER_BYTE)]
    weight_ON = torch.cat(quarters).to(torch.int8) - 1
    return ternary_matmul(codes_MN, scale_M1, weight_ON, weight_scale, dtype)
