"""Absmean ternary codes in Triton. See README.md.

Shapes: O rows of the weight, N columns. The weight is read as one flat array.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wrinklefree.kernels.launch import launch
from wrinklefree.kernels.quantize_weight.reference import absmean

BLOCK = tl.constexpr(1024)


@triton.jit
def _codes_kernel(weight_pointer, scale_pointer, codes_pointer, elements, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < elements
    weight = tl.load(weight_pointer + offsets, mask=inside, other=0.0).to(tl.float32)
    ratio = tl.math.div_rn(weight, tl.load(scale_pointer))
    # Half to even sends a ratio of exactly 0.5 to 0, and the clamp hides every tie above it.
    codes = (ratio > 0.5).to(tl.int8) - (ratio < -0.5).to(tl.int8)
    tl.store(codes_pointer + offsets, codes, mask=inside)


def quantize_weight(weight_ON: Tensor) -> tuple[Tensor, Tensor]:
    """The same codes (int8) and scale (float32 scalar) as the reference, bit for bit.

    The scale is the reference's own reduction: only the elementwise part is worth a kernel.
    """
    weight_ON = weight_ON.contiguous()
    scale = absmean(weight_ON)
    codes_ON = torch.empty_like(weight_ON, dtype=torch.int8)
    elements = weight_ON.numel()
    grid = (triton.cdiv(elements, BLOCK.value),)
    launch(_codes_kernel, grid, weight_ON, scale, codes_ON, elements, BLOCK=BLOCK)
    return codes_ON, scale
