"""int8 activations times packed ternary weights in Triton. See README.md.

Shapes: M tokens, N inputs, O outputs; Q = O / 4 rows of bytes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.language.target_info import is_cuda

from wrinklefree.kernels.launch import launch
from wrinklefree.kernels.packed_matmul.reference import CODES_PER_BYTE
from wrinklefree.kernels.quantize_activation.triton import ROUNDING, codes_at
from wrinklefree.kernels.ternary_matmul.triton import scaled, scales

BYTES_OF_A_WORD = 4
INTERPRETED = tl.constexpr(knobs.runtime.interpret)
"""Whether Triton's interpreter runs the kernels of this process."""


@triton.jit
def _store(
    sums, scale, weight_scale_pointer, result_pointer, token, row, tokens, rows, QUARTER,
    PER_OUTPUT: tl.constexpr,
):  # fmt: skip
    output = QUARTER * rows + row
    outputs = 4 * rows
    result = scaled(sums, scale, weight_scale_pointer, output, outputs, PER_OUTPUT)
    tl.store(
        result_pointer + token.to(tl.int64)[:, None] * outputs + output[None, :],
        result.to(result_pointer.dtype.element_ty),
        mask=(token < tokens)[:, None] & (row < rows)[None, :],
    )


@triton.jit
def _store_quarters(
    sums_0, sums_1, sums_2, sums_3, ones, scale, weight_scale_pointer, result_pointer, token, row,
    tokens, rows, PER_OUTPUT: tl.constexpr,
):  # fmt: skip
    """Sums of x (code + 1), with their factors, less those of x."""
    # Every sum is a multiple of its factor: shifts are exact.
    _store(sums_0 - ones, scale, weight_scale_pointer, result_pointer, token, row,
           tokens, rows, 0, PER_OUTPUT)  # fmt: skip
    _store((sums_1 >> 2) - ones, scale, weight_scale_pointer, result_pointer, token, row,
           tokens, rows, 1, PER_OUTPUT)  # fmt: skip
    _store((sums_2 >> 4) - ones, scale, weight_scale_pointer, result_pointer, token, row,
           tokens, rows, 2, PER_OUTPUT)  # fmt: skip
    _store(sums_3 - ones, scale, weight_scale_pointer, result_pointer, token, row,
           tokens, rows, 3, PER_OUTPUT)  # fmt: skip


@triton.jit
def _packed_kernel(
    codes_pointer,
    scale_pointer,
    packed_pointer,
    weight_scale_pointer,
    result_pointer,
    tokens,
    inputs,
    rows,
    PER_OUTPUT: tl.constexpr,
    ONE_TOKEN: tl.constexpr,
    LARGEST: tl.constexpr,
    MINIMUM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    token = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    scale = scales(codes_pointer, scale_pointer, token, tokens, inputs, LARGEST, MINIMUM)
    # One token: sums are kept for each input of the block, and added up once, at the end.
    width: tl.constexpr = BLOCK_N if ONE_TOKEN else BLOCK_M
    sums_0 = tl.zeros((width, BLOCK_Q), tl.int32)
    sums_1 = tl.zeros((width, BLOCK_Q), tl.int32)
    sums_2 = tl.zeros((width, BLOCK_Q), tl.int32)
    sums_3 = tl.zeros((width, BLOCK_Q), tl.int32)
    total = tl.zeros((width,), tl.int32)
    for start in range(0, inputs, BLOCK_N):
        feature = start + tl.arange(0, BLOCK_N)
        inside = feature < inputs
        packed = tl.load(
            packed_pointer + row.to(tl.int64)[None, :] * inputs + feature[:, None],
            mask=inside[:, None] & (row < rows)[None, :],
            other=0,
        )
        # (code + 1) times 1, 4, 16 and again 1: a shift each is saved.
        quarter_0, quarter_1 = (packed & 3).to(tl.int8), (packed & 12).to(tl.int8)
        quarter_2, quarter_3 = (packed & 48).to(tl.int8), (packed >> 6).to(tl.int8)
        codes = tl.load(
            codes_pointer + token.to(tl.int64)[:, None] * inputs + feature[None, :],
            mask=(token < tokens)[:, None] & inside[None, :],
            other=0,
        )
        if scale_pointer is None:
            codes = codes_at(codes.to(tl.float32), scale[:, None], LARGEST).to(tl.int8)
        if ONE_TOKEN:
            codes = tl.sum(codes.to(tl.int32), axis=0)
            sums_0 += codes[:, None] * quarter_0
            sums_1 += codes[:, None] * quarter_1
            sums_2 += codes[:, None] * quarter_2
            sums_3 += codes[:, None] * quarter_3
            total += codes
        else:
            sums_0 = tl.dot(codes, quarter_0, sums_0, out_dtype=tl.int32)
            sums_1 = tl.dot(codes, quarter_1, sums_1, out_dtype=tl.int32)
            sums_2 = tl.dot(codes, quarter_2, sums_2, out_dtype=tl.int32)
            sums_3 = tl.dot(codes, quarter_3, sums_3, out_dtype=tl.int32)
            total += tl.sum(codes.to(tl.int32), axis=1)
    if ONE_TOKEN:
        sums_0, sums_1 = tl.sum(sums_0, axis=0)[None, :], tl.sum(sums_1, axis=0)[None, :]
        sums_2, sums_3 = tl.sum(sums_2, axis=0)[None, :], tl.sum(sums_3, axis=0)[None, :]
        ones = tl.zeros((1, BLOCK_Q), tl.int32) + tl.sum(total, axis=0)
    else:
        ones = tl.zeros((BLOCK_M, BLOCK_Q), tl.int32) + total[:, None]
    _store_quarters(
        sums_0, sums_1, sums_2, sums_3, ones, scale, weight_scale_pointer, result_pointer, token,
        row, tokens, rows, PER_OUTPUT,
    )  # fmt: skip


@triton.jit
def _four_products(a, b, sums):
    """``sums`` and the products of the four int8 that lie in each int32 of ``a`` and ``b``."""
    if INTERPRETED:  # which has no instructions, and whose machine may have no driver to ask
        sums += (a >> 24) * (b >> 24) + ((a << 8) >> 24) * ((b << 8) >> 24)
        return sums + ((a << 16) >> 24) * ((b << 16) >> 24) + ((a << 24) >> 24) * ((b << 24) >> 24)
    if is_cuda():
        return tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, sums], tl.int32, True, 1
        )
    return tl.inline_asm_elementwise(
        "v_dot4_i32_i8 $0, $1, $2, $3", "=v,v,v,v", [a, b, sums], tl.int32, True, 1
    )


@triton.jit
def _one_token_kernel(
    codes_pointer,
    scale_pointer,
    packed_pointer,
    weight_scale_pointer,
    result_pointer,
    words,
    rows,
    PER_OUTPUT: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Four inputs are a word: of codes, and of packed weights, of which it holds four quarters."""
    row = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    sums_0 = tl.zeros((BLOCK_W, BLOCK_Q), tl.int32)
    sums_1 = tl.zeros((BLOCK_W, BLOCK_Q), tl.int32)
    sums_2 = tl.zeros((BLOCK_W, BLOCK_Q), tl.int32)
    sums_3 = tl.zeros((BLOCK_W, BLOCK_Q), tl.int32)
    total = tl.zeros((BLOCK_W, 1), tl.int32)
    for start in range(0, words, BLOCK_W):
        word = start + tl.arange(0, BLOCK_W)[:, None]
        packed = tl.load(
            packed_pointer + row.to(tl.int64)[None, :] * words + word,
            mask=(word < words) & (row < rows)[None, :],
            other=0,
        )
        codes = tl.load(codes_pointer + word, mask=word < words, other=0)
        total = _four_products(codes, tl.full((BLOCK_W, 1), 0x01010101, tl.int32), total)
        codes = tl.broadcast_to(codes, (BLOCK_W, BLOCK_Q))
        sums_0 = _four_products(codes, packed & 0x03030303, sums_0)
        sums_1 = _four_products(codes, packed & 0x0C0C0C0C, sums_1)
        sums_2 = _four_products(codes, packed & 0x30303030, sums_2)
        sums_3 = _four_products(codes, (packed >> 6) & 0x03030303, sums_3)
    # In one tensor they are added up at once: processors wait for each other a quarter as often.
    former = tl.join(sums_0 - total, sums_1 - 4 * total)
    latter = tl.join(sums_2 - 16 * total, sums_3 - total)
    former, latter = tl.split(tl.sum(tl.join(former, latter), axis=0))
    sums_0, sums_1 = tl.split(former)
    sums_2, sums_3 = tl.split(latter)
    token = tl.zeros((1,), tl.int32)
    scale = tl.load(scale_pointer + token)
    # The sums of x are taken off already.
    _store_quarters(
        sums_0[None, :], sums_1[None, :], sums_2[None, :], sums_3[None, :], 0, scale,
        weight_scale_pointer, result_pointer, token, row, 1, rows, PER_OUTPUT,
    )  # fmt: skip


def packed_matmul(
    codes_MN: Tensor,
    scale_M1: Tensor | None,
    packed_QN: Tensor,
    weight_scale: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The same numbers as the reference, bit for bit."""
    (tokens, inputs), rows = codes_MN.shape, len(packed_QN)
    result_MO = codes_MN.new_empty((tokens, CODES_PER_BYTE * rows), dtype=dtype)
    if tokens == 1 and scale_M1 is not None and inputs % BYTES_OF_A_WORD == 0:
        block_q = 2
        launch(
            _one_token_kernel,
            (-(-rows // block_q),),
            _as_words(codes_MN),
            scale_M1.contiguous(),
            _as_words(packed_QN),
            weight_scale.contiguous(),
            result_MO,
            inputs // BYTES_OF_A_WORD,
            rows,
            PER_OUTPUT=weight_scale.ndim > 0,
            BLOCK_Q=block_q,
            BLOCK_W=512,
            num_warps=4,
        )
        return result_MO
    # A product of tensor cores has 16 rows at least. One token needs many small programs instead.
    block_m, block_q, block_n = (1, 4, 512) if tokens == 1 else (16, 32, 128)
    launch(
        _packed_kernel,
        (-(-rows // block_q), -(-tokens // block_m)),
        codes_MN.contiguous(),
        None if scale_M1 is None else scale_M1.contiguous(),
        packed_QN.contiguous(),
        weight_scale.contiguous(),
        result_MO,
        tokens,
        inputs,
        rows,
        PER_OUTPUT=weight_scale.ndim > 0,
        ONE_TOKEN=tokens == 1,
        **ROUNDING,
        BLOCK_M=block_m,
        BLOCK_Q=block_q,
        BLOCK_N=block_n,
        num_warps=4,
        num_stages=3,
    )
    return result_MO


def _as_words(bytes_MN: Tensor) -> Tensor:
    """The same bytes as int32, four in each."""
    bytes_MN = bytes_MN.contiguous()
    if bytes_MN.storage_offset() % BYTES_OF_A_WORD:
        bytes_MN = bytes_MN.clone()
    return bytes_MN.view(torch.int32)
