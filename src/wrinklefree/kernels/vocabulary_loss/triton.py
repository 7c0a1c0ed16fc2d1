"""Losses over a vocabulary in Triton: a program per token, for gradients per block of its logits.

See README.md. Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from wrinklefree.kernels.launch import launch

LEAST = tl.constexpr(-3.0e38)
"""Below any logit, and finite: -inf less -inf is no number."""


@triton.jit
def _softened(pointer, place, vocabulary, inverse_temperature):
    """Logits over the temperature, float32; -inf behind the vocabulary."""
    logit = tl.load(pointer + place, mask=place < vocabulary, other=float("-inf"))
    return logit.to(tl.float32) * inverse_temperature


@triton.jit
def _grown(largest, total, logit):
    """The largest logit so far, and the sum of the exponentials below it, with a block more."""
    now = tl.maximum(largest, tl.max(logit, axis=0))
    return now, total * tl.exp(largest - now) + tl.sum(tl.exp(logit - now), axis=0)


@triton.jit
def _cross_entropy_kernel(
    logits_pointer,
    target_pointer,
    loss_pointer,
    log_pointer,
    vocabulary,
    stride,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    logits_pointer += token * stride
    largest = LEAST
    total = 0.0
    for start in range(0, vocabulary, BLOCK):
        logit = _softened(logits_pointer, start + tl.arange(0, BLOCK), vocabulary, 1.0)
        largest, total = _grown(largest, total, logit)
    log = largest + tl.log(total)
    target = tl.load(logits_pointer + tl.load(target_pointer + token)).to(tl.float32)
    tl.store(loss_pointer + token, log - target)
    tl.store(log_pointer + token, log)


@triton.jit
def _cross_entropy_gradient_kernel(
    logits_pointer,
    target_pointer,
    log_pointer,
    upstream_pointer,
    gradient_pointer,
    vocabulary,
    stride,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    logit = _softened(logits_pointer + token * stride, place, vocabulary, 1.0)
    probability = tl.exp(logit - tl.load(log_pointer + token))
    hit = place == tl.load(target_pointer + token)
    gradient = tl.load(upstream_pointer + token) * tl.where(hit, probability - 1.0, probability)
    gradient = gradient.to(gradient_pointer.dtype.element_ty)
    tl.store(gradient_pointer + token * vocabulary + place, gradient, mask=place < vocabulary)


@triton.jit
def _divergence_kernel(
    first_pointer,
    second_pointer,
    divergence_pointer,
    first_log_pointer,
    second_log_pointer,
    vocabulary,
    first_stride,
    second_stride,
    inverse_temperature,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    first_pointer += token * first_stride
    second_pointer += token * second_stride
    largest = LEAST
    second_largest = LEAST
    total = 0.0
    second_total = 0.0
    gap = 0.0
    for start in range(0, vocabulary, BLOCK):
        place = start + tl.arange(0, BLOCK)
        first = _softened(first_pointer, place, vocabulary, inverse_temperature)
        second = _softened(second_pointer, place, vocabulary, inverse_temperature)
        now = tl.maximum(largest, tl.max(first, axis=0))
        share = tl.exp(first - now)
        kept = tl.exp(largest - now)
        total = total * kept + tl.sum(share, axis=0)
        gap = gap * kept + tl.sum(tl.where(share > 0.0, share * (first - second), 0.0), axis=0)
        largest = now
        second_largest, second_total = _grown(second_largest, second_total, second)
    log = largest + tl.log(total)
    second_log = second_largest + tl.log(second_total)
    tl.store(divergence_pointer + token, gap / total - log + second_log)
    tl.store(first_log_pointer + token, log)
    tl.store(second_log_pointer + token, second_log)


@triton.jit
def _divergence_gradient_kernel(
    first_pointer,
    second_pointer,
    divergence_pointer,
    first_log_pointer,
    second_log_pointer,
    upstream_pointer,
    gradient_pointer,
    vocabulary,
    first_stride,
    second_stride,
    inverse_temperature,
    OF_FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first_pointer += token * first_stride
    second_pointer += token * second_stride
    first = _softened(first_pointer, place, vocabulary, inverse_temperature)
    first -= tl.load(first_log_pointer + token)
    second = _softened(second_pointer, place, vocabulary, inverse_temperature)
    second -= tl.load(second_log_pointer + token)
    share = tl.exp(first)
    if OF_FIRST:
        excess = first - second - tl.load(divergence_pointer + token)
        slope = tl.where(share > 0.0, share * excess, 0.0)
    else:
        slope = tl.exp(second) - share
    gradient = tl.load(upstream_pointer + token) * inverse_temperature * slope
    gradient = gradient.to(gradient_pointer.dtype.element_ty)
    tl.store(gradient_pointer + token * vocabulary + place, gradient, mask=place < vocabulary)


BLOCK = 4096
CHOICES: dict[str, Any] = {"BLOCK": BLOCK, "num_warps": 8, "enable_fp_fusion": True}
"""16 logits a thread, of which two distributions fit into its registers."""


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, target_N: Tensor) -> Tensor:
        tokens, vocabulary = logits_NV.shape
        loss_N, log_N = logits_NV.new_empty((2, tokens), dtype=torch.float32)
        ctx.numbers = (vocabulary, logits_NV.stride(0))
        operands = (logits_NV, target_N, loss_N, log_N)
        _launch(_cross_entropy_kernel, (tokens,), operands, ctx.numbers)
        ctx.save_for_backward(logits_NV, target_N, log_N)
        return loss_N

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        logits_NV, *others = ctx.saved_tensors
        gradient_NV = torch.empty_like(logits_NV, memory_format=torch.contiguous_format)
        operands = (logits_NV, *others, upstream[0].contiguous(), gradient_NV)
        _launch(_cross_entropy_gradient_kernel, _blocks(logits_NV), operands, ctx.numbers)
        return gradient_NV, None


class _Divergence(torch.autograd.Function):
    """KL(first || second); one of the two learns."""

    @staticmethod
    def forward(
        ctx: Any, first_NV: Tensor, second_NV: Tensor, temperature: float, of_first: bool
    ) -> Tensor:
        tokens, vocabulary = first_NV.shape
        results = first_NV.new_empty((3, tokens), dtype=torch.float32)
        ctx.of_first = of_first
        ctx.numbers = (vocabulary, first_NV.stride(0), second_NV.stride(0), 1 / temperature)
        operands = (first_NV, second_NV, *results)
        _launch(_divergence_kernel, (tokens,), operands, ctx.numbers)
        ctx.save_for_backward(first_NV, second_NV, results)
        return results[0].clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        *pair, results = ctx.saved_tensors
        learner_NV = pair[0] if ctx.of_first else pair[1]
        gradient_NV = torch.empty_like(learner_NV, memory_format=torch.contiguous_format)
        operands = (*pair, *results, upstream[0].contiguous(), gradient_NV)
        kernel, grid = _divergence_gradient_kernel, _blocks(learner_NV)
        _launch(kernel, grid, operands, ctx.numbers, OF_FIRST=ctx.of_first)
        return (gradient_NV, None, None, None) if ctx.of_first else (None, gradient_NV, None, None)


def _blocks(logits_NV: Tensor) -> tuple[int, int]:
    return len(logits_NV), -(-logits_NV.shape[1] // BLOCK)


def _launch(
    kernel: Any, grid: tuple[int, ...], operands: tuple[Tensor, ...], numbers: Any, **choices: Any
) -> None:
    if grid[0]:  # a GPU starts no grid of nothing
        launch(kernel, grid, *operands, *numbers, **CHOICES, **choices)


def cross_entropy(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """Nats of each target, float32 [N]. Targets are tokens of the vocabulary: none is ignored."""
    return _CrossEntropy.apply(_side_by_side(logits_NV), target_N.contiguous())


def divergence(teacher_NV: Tensor, student_NV: Tensor, temperature: float, reverse: bool) -> Tensor:
    """As the reference, float32 [N]; the student's logits alone get a gradient."""
    teacher_NV, student_NV = _side_by_side(teacher_NV.detach()), _side_by_side(student_NV)
    first_NV, second_NV = (student_NV, teacher_NV) if reverse else (teacher_NV, student_NV)
    return _Divergence.apply(first_NV, second_NV, temperature, reverse)


def _side_by_side(logits_NV: Tensor) -> Tensor:
    return logits_NV if logits_NV.stride(1) == 1 else logits_NV.contiguous()
