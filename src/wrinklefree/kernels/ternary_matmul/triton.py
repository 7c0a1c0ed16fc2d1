"""int8 activations times ternary weights (int8) in Triton, one tile per program. See README.md.

Where a kernel gets no scales (None), the activations are floats, and it makes their codes itself.

Shapes: M tokens, N inputs, O outputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wrinklefree.kernels.launch import block_of, launch
from wrinklefree.kernels.quantize_activation.triton import ROUNDING, codes_at, magnitude, scale_of

BLOCK_N = 64
GROUP = 8


@triton.jit
def scales(
    activation_pointer,
    scale_pointer,
    token,
    tokens,
    inputs,
    LARGEST: tl.constexpr,
    MINIMUM: tl.constexpr,
):
    """The scales of some tokens: loaded, or where there are none yet, made of their rows."""
    if scale_pointer is not None:
        return tl.load(scale_pointer + token, mask=token < tokens, other=1.0)
    SPAN: tl.constexpr = 4096 // token.shape[0]  # as wide as registers allow: few waits
    largest = tl.zeros((token.shape[0], SPAN), tl.int32)
    for start in range(0, inputs, SPAN):
        feature = start + tl.arange(0, SPAN)
        value = tl.load(
            activation_pointer + token.to(tl.int64)[:, None] * inputs + feature[None, :],
            mask=(token < tokens)[:, None] & (feature < inputs)[None, :],
            other=0.0,
        )
        largest = tl.maximum(largest, magnitude(value.to(tl.float32)))
    return scale_of(tl.max(largest, axis=1), LARGEST, MINIMUM)


@triton.jit
def scaled(sums, scale, weight_scale_pointer, output, outputs, PER_OUTPUT: tl.constexpr):
    """The reference's two products, in its order."""
    inverse = tl.math.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)
    if PER_OUTPUT:
        weight_scale = tl.load(weight_scale_pointer + output, mask=output < outputs, other=0.0)
        return sums.to(tl.float32) * inverse[:, None] * weight_scale[None, :]
    return sums.to(tl.float32) * (inverse * tl.load(weight_scale_pointer))[:, None]


@triton.jit
def _matmul_kernel(
    codes_pointer,
    scale_pointer,
    weight_pointer,
    weight_scale_pointer,
    result_pointer,
    tokens,
    inputs,
    outputs,
    PER_OUTPUT: tl.constexpr,
    LARGEST: tl.constexpr,
    MINIMUM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr,
):
    # Neighbouring programs share rows of X and of T, so that the cache serves most reads.
    program, columns = tl.program_id(0), tl.cdiv(outputs, BLOCK_O)
    group = program // (GROUP * columns)
    first = group * GROUP
    size = tl.minimum(tl.cdiv(tokens, BLOCK_M) - first, GROUP)
    rest = program % (GROUP * columns)
    token = (first + rest % size) * BLOCK_M + tl.arange(0, BLOCK_M)
    output = (rest // size) * BLOCK_O + tl.arange(0, BLOCK_O)
    scale = scales(codes_pointer, scale_pointer, token, tokens, inputs, LARGEST, MINIMUM)
    codes_row = codes_pointer + token.to(tl.int64)[:, None] * inputs
    weight_row = weight_pointer + output.to(tl.int64)[None, :] * inputs
    sums = tl.zeros((BLOCK_M, BLOCK_O), tl.int32)
    for start in range(0, inputs, BLOCK_N):
        feature = start + tl.arange(0, BLOCK_N)
        inside = feature < inputs
        codes = tl.load(
            codes_row + feature[None, :],
            mask=(token < tokens)[:, None] & inside[None, :],
            other=0,
        )
        if scale_pointer is None:
            codes = codes_at(codes.to(tl.float32), scale[:, None], LARGEST).to(tl.int8)
        weight = tl.load(
            weight_row + feature[:, None],
            mask=inside[:, None] & (output < outputs)[None, :],
            other=0,
        )
        sums = tl.dot(codes, weight, sums, out_dtype=tl.int32)
    result = scaled(sums, scale, weight_scale_pointer, output, outputs, PER_OUTPUT)
    tl.store(
        result_pointer + token.to(tl.int64)[:, None] * outputs + output[None, :],
        result.to(result_pointer.dtype.element_ty),
        mask=(token < tokens)[:, None] & (output < outputs)[None, :],
    )


def ternary_matmul(
    codes_MN: Tensor,
    scale_M1: Tensor | None,
    weight_ON: Tensor,
    weight_scale: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The same numbers as the reference, bit for bit."""
    (tokens, inputs), outputs = codes_MN.shape, len(weight_ON)
    result_MO = codes_MN.new_empty((tokens, outputs), dtype=dtype)
    # Few tokens leave processors idle with large tiles.
    block_m, block_o, warps = (128, 128, 8) if tokens > 512 else (64, 64, 4)
    if scale_M1 is None:
        block_m, block_o, warps = min(64, max(16, block_of(tokens))), 64, 4
    launch(
        _matmul_kernel,
        (-(-tokens // block_m) * -(-outputs // block_o),),
        codes_MN.contiguous(),
        None if scale_M1 is None else scale_M1.contiguous(),
        weight_ON.contiguous(),
        weight_scale.contiguous(),
        result_MO,
        tokens,
        inputs,
        outputs,
        PER_OUTPUT=weight_scale.ndim > 0,
        **ROUNDING,
        BLOCK_M=block_m,
        BLOCK_O=block_o,
        BLOCK_N=BLOCK_N,
        GROUP=GROUP,
        num_warps=warps,
        num_stages=3,
    )
    return result_MO
