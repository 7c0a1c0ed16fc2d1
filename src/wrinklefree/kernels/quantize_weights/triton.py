"""Ternary codes of many weights in as many launches as of one, in Triton. See README.md.

Weights are flat arrays, found by address. Each is cut into spans; a program has a span.
Shapes: L weights, P spans of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from wrinklefree.kernels.launch import launch
from wrinklefree.kernels.quantize_weights.reference import (
    ITERATIONS,
    MINIMUM_SCALE,
    FittedScale,
)

SPAN, BLOCK = 16384, 1024
DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class _Table(NamedTuple):
    """Where weights, spans and codes are, on the device of the weights."""

    address_L: Tensor
    length_L: Tensor
    codes_start_L: Tensor
    """Where a weight's codes start in the one array of all codes."""
    first_span_L: Tensor
    spans_L: Tensor
    owner_P: Tensor
    """Whose weight a span is a part of."""
    codes: int
    """Length of the array of all codes."""


@lru_cache(maxsize=8)
def _table(addresses: tuple[int, ...], lengths: tuple[int, ...], device: torch.device) -> _Table:
    # The addresses are the key, so a table that is found is never stale.
    spans = [-(-length // SPAN) for length in lengths]
    padded = [-(-length // 16) * 16 for length in lengths]  # each array of codes is aligned
    columns = {
        "address_L": list(addresses),
        "length_L": list(lengths),
        "codes_start_L": [sum(padded[:index]) for index in range(len(padded))],
        "first_span_L": [sum(spans[:index]) for index in range(len(spans))],
        "spans_L": spans,
        "owner_P": [index for index, count in enumerate(spans) for _ in range(count)],
    }
    tensors = {
        name: torch.tensor(values, dtype=torch.int64, device=device)
        for name, values in columns.items()
    }
    return _Table(**tensors, codes=sum(padded))


@triton.jit
def _span(address_pointer, length_pointer, first_span_pointer, owner_pointer, SPAN: tl.constexpr):
    """Of this program: its weight, that one's address and length, and where the span starts."""
    owner = tl.load(owner_pointer + tl.program_id(0))
    start = (tl.program_id(0) - tl.load(first_span_pointer + owner)) * SPAN
    return owner, tl.load(address_pointer + owner), tl.load(length_pointer + owner), start


@triton.jit
def _sums_kernel(
    address_pointer,
    length_pointer,
    first_span_pointer,
    owner_pointer,
    scale_pointer,
    total_pointer,
    count_pointer,
    ALL: tl.constexpr,
    DTYPE: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum and number of the magnitudes of a span above half of the scale, or of all."""
    owner, address, length, start = _span(  # pyright: ignore[reportGeneralTypeIssues]
        address_pointer, length_pointer, first_span_pointer, owner_pointer, SPAN
    )
    weight_pointer = address.to(tl.pointer_type(DTYPE))
    total = tl.zeros((BLOCK,), tl.float64)
    count = tl.zeros((BLOCK,), tl.int32)
    threshold = tl.full((), 0.0, tl.float32)
    if not ALL:
        threshold = tl.load(scale_pointer + owner) * 0.5
    for step in range(0, tl.minimum(SPAN, length - start), BLOCK):
        offset = start + step + tl.arange(0, BLOCK)
        inside = offset < length
        magnitude = tl.abs(tl.load(weight_pointer + offset, mask=inside, other=0.0).to(tl.float32))
        if not ALL:
            chosen = magnitude > threshold
            count += chosen.to(tl.int32)
            magnitude = tl.where(chosen, magnitude, 0.0)
        total += magnitude.to(tl.float64)
    tl.store(total_pointer + tl.program_id(0), tl.sum(total, axis=0))
    tl.store(count_pointer + tl.program_id(0), tl.sum(count, axis=0))


@triton.jit
def _scale_kernel(
    length_pointer,
    first_span_pointer,
    spans_pointer,
    total_pointer,
    count_pointer,
    scale_pointer,
    ALL: tl.constexpr,
    MINIMUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A weight's scale from the sums of its spans."""
    owner = tl.program_id(0)
    first, spans = tl.load(first_span_pointer + owner), tl.load(spans_pointer + owner)
    total = tl.zeros((BLOCK,), tl.float64)
    count = tl.zeros((BLOCK,), tl.int64)
    for step in range(0, spans, BLOCK):
        span = step + tl.arange(0, BLOCK)
        total += tl.load(total_pointer + first + span, mask=span < spans, other=0.0)
        count += tl.load(count_pointer + first + span, mask=span < spans, other=0).to(tl.int64)
    divisor = tl.load(length_pointer + owner) if ALL else tl.sum(count, axis=0)
    scale = (tl.sum(total, axis=0) / tl.maximum(divisor, 1).to(tl.float64)).to(tl.float32)
    scale = tl.where(scale < MINIMUM, MINIMUM, scale)  # and not a maximum, which may skip NaN
    tl.store(scale_pointer + owner, scale, mask=divisor > 0)


@triton.jit
def _codes_kernel(
    address_pointer,
    length_pointer,
    first_span_pointer,
    owner_pointer,
    scale_pointer,
    codes_start_pointer,
    codes_pointer,
    DTYPE: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    owner, address, length, start = _span(  # pyright: ignore[reportGeneralTypeIssues]
        address_pointer, length_pointer, first_span_pointer, owner_pointer, SPAN
    )
    weight_pointer = address.to(tl.pointer_type(DTYPE))
    codes_pointer += tl.load(codes_start_pointer + owner)
    scale = tl.load(scale_pointer + owner)
    for step in range(0, tl.minimum(SPAN, length - start), BLOCK):
        offset = start + step + tl.arange(0, BLOCK)
        inside = offset < length
        weight = tl.load(weight_pointer + offset, mask=inside, other=0.0).to(tl.float32)
        ratio = tl.math.div_rn(weight, scale)
        codes = (ratio > 0.5).to(tl.int8) - (ratio < -0.5).to(tl.int8)
        tl.store(codes_pointer + offset, codes, mask=inside)


def quantize_weights(weights: Sequence[Tensor], scale: FittedScale) -> list[tuple[Tensor, Tensor]]:
    """The same codes and scales as the reference, bit for bit."""
    first = weights[0]
    table = _table(
        tuple(weight.data_ptr() for weight in weights),
        tuple(weight.numel() for weight in weights),
        first.device,
    )
    programs = len(table.owner_P)
    span = (table.address_L, table.length_L, table.first_span_L, table.owner_P)
    sizes = {"DTYPE": DTYPES[first.dtype], "SPAN": SPAN, "BLOCK": BLOCK}
    scale_L = first.new_empty(len(weights), dtype=torch.float32)
    total_P = first.new_empty(programs, dtype=torch.float64)
    count_P = first.new_empty(programs, dtype=torch.int32)
    for iteration in range(1 + (ITERATIONS if scale == "least_squares" else 0)):
        every = iteration == 0
        launch(_sums_kernel, (programs,), *span, scale_L, total_P, count_P, ALL=every, **sizes)
        launch(
            _scale_kernel,
            (len(weights),),
            table.length_L,
            table.first_span_L,
            table.spans_L,
            total_P,
            count_P,
            scale_L,
            ALL=every,
            MINIMUM=MINIMUM_SCALE,
            BLOCK=BLOCK,
        )
    codes = first.new_empty(table.codes, dtype=torch.int8)
    launch(_codes_kernel, (programs,), *span, scale_L, table.codes_start_L, codes, **sizes)
    parts = codes.split([-(-weight.numel() // 16) * 16 for weight in weights])
    return [
        (part[: weight.numel()].view(weight.shape), one_scale)
        for weight, part, one_scale in zip(weights, parts, scale_L.unbind(), strict=True)
    ]
