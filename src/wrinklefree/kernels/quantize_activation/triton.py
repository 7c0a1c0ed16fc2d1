"""Absmax int8 codes per token in Triton: one program per token. See README.md.

Shapes: M tokens (any leading dimensions), N features of a token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wrinklefree.kernels.launch import block_of, launch, warps_for
from wrinklefree.kernels.quantize_activation.reference import LARGEST_CODE, MINIMUM_ABSMAX

ROUNDING = {"LARGEST": float(LARGEST_CODE), "MINIMUM": MINIMUM_ABSMAX}
"""The constants of every kernel that makes codes of activations."""
INTEGERS_FROM = tl.constexpr(1.5 * 2.0**23)
"""Around it float32 has the integers and nothing between them."""


@triton.jit
def magnitude(value):
    """``|value|`` of float32 as an integer, ordered as numbers are and with NaN above them all."""
    return value.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def scale_of(largest, LARGEST: tl.constexpr, MINIMUM: tl.constexpr):
    """The scale of a token by its largest magnitude; NaN where that is NaN, so that it shows."""
    absmax = largest.to(tl.float32, bitcast=True)
    absmax = tl.where(absmax < MINIMUM, MINIMUM, absmax)
    return tl.math.div_rn(tl.full(absmax.shape, 1.0, tl.float32), absmax) * LARGEST


@triton.jit
def codes_at(value, scale, LARGEST: tl.constexpr):
    """``clamp(round(value * scale))`` in float32; ties round to even."""
    codes = (value * scale + INTEGERS_FROM) - INTEGERS_FROM
    return tl.minimum(tl.maximum(codes, -LARGEST - 1.0), LARGEST)


@triton.jit
def token_codes(value, LARGEST: tl.constexpr, MINIMUM: tl.constexpr):
    """Codes (float32) and scale of one token, a float32 block that is 0 beyond its features."""
    scale = scale_of(tl.max(magnitude(value), axis=0), LARGEST, MINIMUM)
    return codes_at(value, scale, LARGEST), scale


@triton.jit
def _codes_kernel(
    activation_pointer,
    codes_pointer,
    scale_pointer,
    features,
    LARGEST: tl.constexpr,
    MINIMUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    feature = tl.arange(0, BLOCK)
    inside = feature < features
    offsets = token * features + feature
    value = tl.load(activation_pointer + offsets, mask=inside, other=0.0).to(tl.float32)
    codes, scale = token_codes(value, LARGEST, MINIMUM)  # pyright: ignore[reportGeneralTypeIssues]
    tl.store(codes_pointer + offsets, codes.to(tl.int8), mask=inside)
    tl.store(scale_pointer + token, scale)


def quantize_activation(activation_MN: Tensor) -> tuple[Tensor, Tensor]:
    """The same codes (int8) and scales (float32, [..., 1]) as the reference, bit for bit."""
    activation_MN = activation_MN.contiguous()
    features = activation_MN.shape[-1]
    tokens = activation_MN.numel() // features
    codes_MN = torch.empty_like(activation_MN, dtype=torch.int8)
    scale_M1 = activation_MN.new_empty((*activation_MN.shape[:-1], 1), dtype=torch.float32)
    block = block_of(features)
    launch(
        _codes_kernel,
        (tokens,),
        activation_MN,
        codes_MN,
        scale_M1,
        features,
        **ROUNDING,
        BLOCK=block,
        num_warps=warps_for(block),
    )
    return codes_MN, scale_M1
