"""Divergence of relations in Triton: one program per block of rows of a matrix. See README.md.

Shapes: G relation matrices, of which consecutive ones belong to the heads of one row of the batch;
B rows of the batch; T tokens; E and F sizes of a relation head of student and teacher.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from wrinklefree.kernels.launch import launch


@triton.jit
def _scores(
    pointer, row, key, size, inverse_temperature, PRECISION: tl.constexpr, DEPTH: tl.constexpr
):
    scores = tl.zeros((row.shape[0], key.shape[0]), tl.float32)
    for start in range(0, size, DEPTH):
        feature = start + tl.arange(0, DEPTH)
        rows = tl.load(pointer + row[:, None] * size + feature[None, :])
        keys = tl.load(pointer + key[None, :] * size + feature[:, None])
        scores = tl.dot(rows, keys, scores, input_precision=PRECISION)
    return scores * inverse_temperature


@triton.jit
def _own_score(pointer, row, size, inverse_temperature, DEPTH: tl.constexpr):
    """Of rows with themselves: the largest they have, as all norms are 1, and always allowed."""
    squares = tl.zeros((row.shape[0],), tl.float32)
    for start in range(0, size, DEPTH):
        feature = start + tl.arange(0, DEPTH)
        rows = tl.load(pointer + row[:, None] * size + feature[None, :]).to(tl.float32)
        squares += tl.sum(rows * rows, axis=1)
    return squares * inverse_temperature


@triton.jit
def _allowed(row, key, piece_of_row, piece_of_key, CAUSAL: tl.constexpr):
    """Whether the relation of a row has the key."""
    same = (piece_of_row == piece_of_key) & (piece_of_row >= 0)
    if CAUSAL:
        same = same & (key <= row)
    return same | (row == key)


@triton.jit
def _divergence_kernel(
    student_pointer,
    teacher_pointer,
    piece_pointer,
    divergence_pointer,
    student_log_pointer,
    teacher_log_pointer,
    tokens,
    heads,
    student_size,
    teacher_size,
    inverse_temperature,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    matrix = tl.program_id(1).to(tl.int64)
    student_pointer += matrix * tokens * student_size
    teacher_pointer += matrix * tokens * teacher_size
    piece_pointer += matrix // heads * tokens
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    # Taken from all scores of a row, so that no exponential overflows.
    own = _own_score(student_pointer, row, student_size, inverse_temperature, DEPTH)
    teacher_own = _own_score(teacher_pointer, row, teacher_size, inverse_temperature, DEPTH)
    piece = tl.load(piece_pointer + row)[:, None]
    total = tl.zeros((ROWS,), tl.float32)
    teacher_total = tl.zeros((ROWS,), tl.float32)
    gap = tl.zeros((ROWS,), tl.float32)
    end = tl.program_id(0) * ROWS + ROWS if CAUSAL else tokens
    for start in range(0, end, KEYS):
        key = start + tl.arange(0, KEYS)
        piece_of_key = tl.load(piece_pointer + key)[None, :]
        allowed = _allowed(row[:, None], key[None, :], piece, piece_of_key, CAUSAL)
        score = _scores(
            student_pointer, row, key, student_size, inverse_temperature, PRECISION, DEPTH
        )
        score -= own[:, None]
        teacher_score = _scores(
            teacher_pointer, row, key, teacher_size, inverse_temperature, PRECISION, DEPTH
        )
        teacher_score -= teacher_own[:, None]
        share = tl.where(allowed, tl.exp(teacher_score), 0.0)
        total += tl.sum(tl.where(allowed, tl.exp(score), 0.0), axis=1)
        teacher_total += tl.sum(share, axis=1)
        gap += tl.sum(share * (teacher_score - score), axis=1)
    log, teacher_log = tl.log(total), tl.log(teacher_total)
    offsets = matrix * tokens + row
    tl.store(divergence_pointer + offsets, gap / teacher_total - teacher_log + log)
    tl.store(student_log_pointer + offsets, log + own)
    tl.store(teacher_log_pointer + offsets, teacher_log + teacher_own)


@triton.jit
def _gradient_kernel(
    student_pointer,
    teacher_pointer,
    piece_pointer,
    student_log_pointer,
    teacher_log_pointer,
    upstream_pointer,
    gradient_pointer,
    tokens,
    heads,
    student_size,
    teacher_size,
    inverse_temperature,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    DEPTH: tl.constexpr,
    FEATURES: tl.constexpr,
):
    matrix = tl.program_id(1).to(tl.int64)
    student_pointer += matrix * tokens * student_size
    teacher_pointer += matrix * tokens * teacher_size
    piece_pointer += matrix // heads * tokens
    student_log_pointer += matrix * tokens
    teacher_log_pointer += matrix * tokens
    upstream_pointer += matrix * tokens
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    piece = tl.load(piece_pointer + row)[:, None]
    log = tl.load(student_log_pointer + row)[:, None]
    teacher_log = tl.load(teacher_log_pointer + row)[:, None]
    upstream = tl.load(upstream_pointer + row)[:, None]
    feature = tl.program_id(2) * FEATURES + tl.arange(0, FEATURES)
    gradient = tl.zeros((ROWS, FEATURES), tl.float32)
    for start in range(0, tokens, KEYS):
        key = start + tl.arange(0, KEYS)
        piece_of_key = tl.load(piece_pointer + key)[None, :]
        log_of_key = tl.load(student_log_pointer + key)[None, :]
        teacher_log_of_key = tl.load(teacher_log_pointer + key)[None, :]
        upstream_of_key = tl.load(upstream_pointer + key)[None, :]
        score = _scores(
            student_pointer, row, key, student_size, inverse_temperature, PRECISION, DEPTH
        )
        teacher_score = _scores(
            teacher_pointer, row, key, teacher_size, inverse_temperature, PRECISION, DEPTH
        )
        # The score is in the relation of the row and in that of the key.
        allowed = _allowed(row[:, None], key[None, :], piece, piece_of_key, CAUSAL)
        excess = tl.exp(score - log) - tl.exp(teacher_score - teacher_log)
        slope = tl.where(allowed, upstream * excess, 0.0)
        allowed = _allowed(key[None, :], row[:, None], piece_of_key, piece, CAUSAL)
        excess = tl.exp(score - log_of_key) - tl.exp(teacher_score - teacher_log_of_key)
        slope += tl.where(allowed, upstream_of_key * excess, 0.0)
        student = tl.load(student_pointer + key[:, None] * student_size + feature[None, :])
        gradient = tl.dot(slope, student.to(tl.float32), gradient, input_precision=PRECISION)
    offsets = (matrix * tokens + row)[:, None] * student_size + feature[None, :]
    gradient = (gradient * inverse_temperature).to(gradient_pointer.dtype.element_ty)
    tl.store(gradient_pointer + offsets, gradient)


TILE, DEPTH = 64, 32
"""Tokens are padded to a multiple of the one (each alone in its relation), features of the other
(zeros), so that kernels need no masks: these took more registers than there are."""
CHOICES: dict[str, Any] = {
    # float32 as it is: tf32 keeps three digits of a score.
    "PRECISION": "ieee",
    "ROWS": TILE,
    "KEYS": TILE,
    "DEPTH": DEPTH,
    "num_warps": 8,
    # Loads of a later pass would take the registers that two matrices of scores need.
    "num_stages": 1,
    "enable_fp_fusion": True,
}


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_GTE: Tensor,
        teacher_GTF: Tensor,
        piece_BT: Tensor,
        causal: bool,
        temperature: float,
    ) -> Tensor:
        matrices, tokens, size = student_GTE.shape
        more = -tokens % TILE
        inputs = [F.pad(x, (0, -x.shape[-1] % DEPTH, 0, more)) for x in (student_GTE, teacher_GTF)]
        inputs.append(F.pad(piece_BT, (0, more), value=-1))
        inputs = [tensor.contiguous() for tensor in inputs]
        divergence_GT = student_GTE.new_empty((matrices, tokens + more), dtype=torch.float32)
        logs = [torch.empty_like(divergence_GT) for _ in range(2)]
        widths = [x.shape[-1] for x in inputs[:2]]
        ctx.numbers = (tokens + more, matrices // len(piece_BT), *widths, 1 / temperature)
        ctx.causal, ctx.size = causal, size
        launch(
            _divergence_kernel,
            ((tokens + more) // TILE, matrices),
            *inputs,
            divergence_GT,
            *logs,
            *ctx.numbers,
            CAUSAL=causal,
            **CHOICES,
        )
        ctx.save_for_backward(*inputs, *logs)
        return divergence_GT[:, :tokens]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        student_GTE, *others = ctx.saved_tensors
        matrices, tokens, width = student_GTE.shape
        upstream_GT = F.pad(upstream[0], (0, tokens - upstream[0].shape[1])).contiguous()
        gradient_GTE = torch.empty_like(student_GTE)
        # Each part of the features computes all scores again: as few as registers allow.
        features = math.gcd(width, 2 * DEPTH)
        launch(
            _gradient_kernel,
            (tokens // TILE, matrices, width // features),
            student_GTE,
            *others,
            upstream_GT,
            gradient_GTE,
            *ctx.numbers,
            CAUSAL=ctx.causal,
            FEATURES=features,
            **CHOICES,
        )
        return gradient_GTE[:, : upstream[0].shape[1], : ctx.size], None, None, None, None


def relation_divergence(
    student_GTE: Tensor,
    teacher_GTF: Tensor,
    piece_BT: Tensor,
    *,
    causal: bool,
    temperature: float,
) -> Tensor:
    """KL(teacher || student) of every row of every relation matrix, nats float32 [G, T].

    Parameters
    ----------
    student_GTE, teacher_GTF : rows of norm 1 (or 0); only the student's get a gradient.
    piece_BT : the document piece of a token, -1 for padding; B divides G.
    """
    return _Divergence.apply(student_GTE, teacher_GTF, piece_BT, causal, temperature)
