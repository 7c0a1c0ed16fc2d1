"""SubLN and int8 codes in Triton. See README.md.

Shapes: M tokens (any leading dimensions), N features of a token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wrinklefree.kernels.launch import block_of, launch, warps_for
from wrinklefree.kernels.quantize_activation.triton import ROUNDING, token_codes

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
ROWS, LARGEST_CHUNK = 4, 1024


@triton.jit
def _forward_kernel(
    activation_pointer,
    gain_pointer,
    codes_pointer,
    scale_pointer,
    inverse_pointer,
    features,
    epsilon,
    NORMED: tl.constexpr,
    LARGEST: tl.constexpr,
    MINIMUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    feature = tl.arange(0, BLOCK)
    inside = feature < features
    offsets = token * features + feature
    value = tl.load(activation_pointer + offsets, mask=inside, other=0.0).to(tl.float32)
    mean_square = tl.math.div_rn(tl.sum(value * value, axis=0), features.to(tl.float32))
    one = tl.full((), 1.0, tl.float32)
    inverse = tl.math.div_rn(one, tl.math.sqrt_rn(mean_square + epsilon))
    unit = (value * inverse).to(activation_pointer.dtype.element_ty).to(tl.float32)
    gain = tl.load(gain_pointer + feature, mask=inside, other=0.0).to(tl.float32)
    normed = (gain * unit).to(NORMED).to(tl.float32)
    codes, scale = token_codes(normed, LARGEST, MINIMUM)
    tl.store(codes_pointer + offsets, codes.to(tl.int8), mask=inside)
    tl.store(scale_pointer + token, scale)
    tl.store(inverse_pointer + token, inverse)


@triton.jit
def _backward_kernel(
    gradient_pointer,
    activation_pointer,
    gain_pointer,
    inverse_pointer,
    to_activation_pointer,
    to_gain_pointer,
    tokens,
    features,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    token = program * ROWS + tl.arange(0, ROWS)
    there = token < tokens
    inverse = tl.load(inverse_pointer + token, mask=there, other=0.0)[:, None]
    products = tl.zeros((ROWS, CHUNK), tl.float32)
    for start in range(0, features, CHUNK):
        feature = start + tl.arange(0, CHUNK)
        inside = there[:, None] & (feature < features)[None, :]
        offsets = token[:, None] * features + feature[None, :]
        gradient = tl.load(gradient_pointer + offsets, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(activation_pointer + offsets, mask=inside, other=0.0).to(tl.float32)
        gain = tl.load(gain_pointer + feature, mask=feature < features, other=0.0).to(tl.float32)
        products += gradient * gain[None, :] * (value * inverse)
    projection = (tl.sum(products, axis=1) / features)[:, None]
    # Read again, from the cache: to keep whole tokens in registers would spill.
    for start in range(0, features, CHUNK):
        feature = start + tl.arange(0, CHUNK)
        inside = there[:, None] & (feature < features)[None, :]
        offsets = token[:, None] * features + feature[None, :]
        gradient = tl.load(gradient_pointer + offsets, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(activation_pointer + offsets, mask=inside, other=0.0).to(tl.float32)
        gain = tl.load(gain_pointer + feature, mask=feature < features, other=0.0).to(tl.float32)
        unit = value * inverse
        to_activation = inverse * (gradient * gain[None, :] - unit * projection)
        element_type = to_activation_pointer.dtype.element_ty
        tl.store(to_activation_pointer + offsets, to_activation.to(element_type), mask=inside)
        to_gain = tl.sum(gradient * unit.to(element_type).to(tl.float32), axis=0)
        tl.store(to_gain_pointer + program * features + feature, to_gain, mask=feature < features)


def subln_quantize(
    activation_MN: Tensor, gain_N: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference; what differs is the order of one sum, and it is within rounding."""
    activation_MN = activation_MN.contiguous()
    features = activation_MN.shape[-1]
    tokens = activation_MN.numel() // features
    codes_MN = torch.empty_like(activation_MN, dtype=torch.int8)
    scale_M1 = activation_MN.new_empty((*activation_MN.shape[:-1], 1), dtype=torch.float32)
    inverse_M1 = torch.empty_like(scale_M1)
    block = block_of(features)
    launch(
        _forward_kernel,
        (tokens,),
        activation_MN,
        gain_N.contiguous(),
        codes_MN,
        scale_M1,
        inverse_M1,
        features,
        epsilon,
        NORMED=DTYPES[torch.promote_types(activation_MN.dtype, gain_N.dtype)],
        **ROUNDING,
        BLOCK=block,
        num_warps=warps_for(block),
    )
    return codes_MN, scale_M1, inverse_M1


def subln_gradients(
    gradient_MN: Tensor, activation_MN: Tensor, gain_N: Tensor, inverse_M1: Tensor
) -> tuple[Tensor, Tensor]:
    """As the reference. The gain's gradient is summed over ROWS tokens here, then by torch."""
    activation_MN = activation_MN.contiguous()
    features = activation_MN.shape[-1]
    tokens = activation_MN.numel() // features
    programs = -(-tokens // ROWS)
    to_activation_MN = torch.empty_like(activation_MN)
    to_gain_PN = activation_MN.new_empty((programs, features), dtype=torch.float32)
    launch(
        _backward_kernel,
        (programs,),
        gradient_MN.contiguous(),
        activation_MN,
        gain_N.contiguous(),
        inverse_M1,
        to_activation_MN,
        to_gain_PN,
        tokens,
        features,
        ROWS=ROWS,
        CHUNK=min(LARGEST_CHUNK, block_of(features)),
    )
    return to_activation_MN, to_gain_PN.sum(0).to(gain_N.dtype)
