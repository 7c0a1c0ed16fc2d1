"""A step of an eight-bit running average in Triton: one program per block. See README.md.

Shapes: N entries of a tensor, flat; K blocks of them, the last of which may be shorter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wrinklefree.kernels.launch import launch
from wrinklefree.kernels.momentum_8bit.reference import (
    BLOCK,
    LARGEST_CODE,
    LOWER_BITS,
    Map,
    tables,
)

TO_INTEGER = tl.constexpr(1.5 * 2.0**23)
"""Added to a float32 below 2^22 in magnitude it leaves no bit for a fraction: the sum is rounded to
an integer, half to even."""


@triton.jit
def _step_kernel(
    codes_pointer,
    largest_pointer,
    entries_pointer,
    moved_pointer,
    values_pointer,
    middles_pointer,
    lowest_pointer,
    elements,
    rate,
    LINEAR: tl.constexpr,
    LEAST_CODE: tl.constexpr,
    NESTEROV: tl.constexpr,
    SQUARED: tl.constexpr,
    LARGEST: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    offsets = block * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < elements
    code = tl.load(codes_pointer + offsets, mask=inside, other=0)
    largest = tl.load(largest_pointer + block)
    entry = tl.load(entries_pointer + offsets, mask=inside, other=0.0).to(tl.float32)
    if SQUARED:
        entry = entry * entry
    if LINEAR:
        average = code.to(tl.float32) * tl.math.div_rn(largest, LARGEST)
    else:
        average = tl.load(values_pointer + code.to(tl.int32), mask=inside, other=0.0) * largest
    moved = average + (entry - average) * rate
    ahead = moved + (entry - moved) * rate if NESTEROV else moved
    tl.store(moved_pointer + offsets, ahead.to(moved_pointer.dtype.element_ty), mask=inside)

    largest = tl.max(tl.abs(moved), axis=0)
    # A maximum may skip NaN, and a finite scale would then hide it.
    has_nan = tl.sum((moved != moved).to(tl.int32), axis=0) > 0
    tl.store(largest_pointer + block, tl.where(has_nan, float("nan"), largest))
    share = tl.math.div_rn(moved, tl.where(largest > 0, largest, 1.0))
    if LINEAR:
        code = ((share * LARGEST + TO_INTEGER) - TO_INTEGER).to(tl.int8)
    else:
        upper = (share.to(tl.int32, bitcast=True) >> SHIFT) & ((1 << (32 - SHIFT)) - 1)
        found = tl.load(lowest_pointer + upper)
        found += (share > tl.load(middles_pointer + found)).to(tl.int32)
        code = tl.maximum(found, LEAST_CODE).to(tl.uint8)
    tl.store(codes_pointer + offsets, code, mask=inside)


def move_average(
    codes: Tensor,
    largest_K: Tensor,
    entries: Tensor,
    rate: float,
    kind: Map,
    *,
    nesterov: bool = False,
    squared: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """As the reference, and the same bits of codes, scales and average."""
    assert codes.is_contiguous()
    moved = torch.empty_like(codes, dtype=dtype)
    maps = (None,) * 3 if kind == "linear" else tables(kind == "dynamic", codes.device)
    launch(
        _step_kernel,
        (len(largest_K),),
        codes,
        largest_K,
        entries.contiguous(),
        moved,
        *maps,
        codes.numel(),
        rate,
        LINEAR=kind == "linear",
        LEAST_CODE=int(kind == "dynamic_unsigned"),
        NESTEROV=nesterov,
        SQUARED=squared,
        LARGEST=float(LARGEST_CODE),
        SHIFT=LOWER_BITS,
        BLOCK=BLOCK,
        num_warps=8,
    )
    return moved
