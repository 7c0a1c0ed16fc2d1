"""Symmetric products in Triton: one program per tile of the lower triangle. See README.md.

Shapes: K matrices (none, or one leading dimension) of R rows and C columns.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from wrinklefree.kernels.launch import launch


@triton.jit
def _product_kernel(
    x_pointer,
    product_pointer,
    rows,
    columns,
    stride_matrix,
    stride_row,
    stride_column,
    alpha,
    beta,
    ADD: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """``alpha X Xᵀ``, and with ADD ``+ beta X``, for which X is square and symmetric."""
    tile_row, tile_column = tl.program_id(0), tl.program_id(1)
    if tile_column > tile_row:
        return
    matrix = tl.program_id(2).to(tl.int64)
    x_pointer += matrix * stride_matrix
    product_pointer += matrix * rows * rows
    row = tile_row * TILE + tl.arange(0, TILE)
    column = tile_column * TILE + tl.arange(0, TILE)
    left_pointers = x_pointer + row[:, None].to(tl.int64) * stride_row
    right_pointers = x_pointer + column[None, :].to(tl.int64) * stride_row
    sums = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, columns, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        along = depth.to(tl.int64) * stride_column
        in_left = (row < rows)[:, None] & (depth < columns)[None, :]
        in_right = (column < rows)[None, :] & (depth < columns)[:, None]
        left = tl.load(left_pointers + along[None, :], mask=in_left, other=0.0)
        right = tl.load(right_pointers + along[:, None], mask=in_right, other=0.0)
        sums = tl.dot(left, right, sums, input_precision=PRECISION)
    result = alpha * sums
    inside = (row < rows)[:, None] & (column < rows)[None, :]
    if ADD:
        own = left_pointers + column[None, :].to(tl.int64) * stride_column
        result += beta * tl.load(own, mask=inside, other=0.0).to(tl.float32)
    result = result.to(product_pointer.dtype.element_ty)
    offsets = row[:, None].to(tl.int64) * rows + column[None, :]
    # Also within a tile on the diagonal: not every machine multiplies it to a symmetric one.
    tl.store(product_pointer + offsets, result, mask=inside & (row[:, None] >= column[None, :]))
    mirrored = column[:, None].to(tl.int64) * rows + row[None, :]
    above = (row < rows)[None, :] & (row[None, :] > column[:, None])
    tl.store(product_pointer + mirrored, tl.trans(result), mask=above)


def gram(x_KRC: Tensor) -> Tensor:
    """As the reference; the result is symmetric to the bit."""
    return _product(x_KRC, 1.0, 0.0, add=False)


def polynomial(gram_KRR: Tensor, b: float, c: float) -> Tensor:
    """As the reference; the result is symmetric to the bit."""
    return _product(gram_KRR, c, b, add=True)


def _product(x_KRC: Tensor, alpha: float, beta: float, *, add: bool) -> Tensor:
    *matrices, rows, columns = x_KRC.shape
    product_KRR = x_KRC.new_empty((*matrices, rows, rows))
    half = x_KRC.dtype == torch.bfloat16
    # In tiles of 128 the lower triangle of 1024 x 1024 has 36, for the 132 multiprocessors of an
    # H100; float32 has its registers spilled in larger ones.
    large = half and rows >= 2048
    tile = 128 if large else 64
    tiles = triton.cdiv(rows, tile)
    launch(
        _product_kernel,
        (tiles, tiles, math.prod(matrices)),
        x_KRC,
        product_KRR,
        rows,
        columns,
        x_KRC.stride(0) if matrices else 0,
        *x_KRC.stride()[-2:],
        alpha,
        beta,
        ADD=add,
        # float32 as it is: tf32 keeps three digits.
        PRECISION="ieee",
        TILE=tile,
        DEPTH=64 if half else 32,
        num_warps=4 if half and not large else 8,
        num_stages=3 if half else 2,
        enable_fp_fusion=True,
    )
    return product_KRR
