"""Runs in a process of its own, with Triton's interpreter where there is no GPU; prints JSON.

For every case the largest errors of a loss, in nats, and of a gradient, from upstream ones up to 1,
against the definition in float64: of the kernel, and of the definition in float32.

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from bfloat16_in_interpreter import mend
from torch import Tensor

from wrinklefree.kernels.vocabulary_loss import reference, triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Loss = Callable[[Tensor], Tensor]


def results(loss: Loss, logits_NV: Tensor, upstream_N: Tensor) -> tuple[Tensor, Tensor]:
    leaf_NV = logits_NV.detach().requires_grad_()
    loss_N = loss(leaf_NV)
    (gradient_NV,) = torch.autograd.grad(loss_N, leaf_NV, upstream_N.to(loss_N.dtype))
    assert gradient_NV.dtype == logits_NV.dtype
    return loss_N.detach(), gradient_NV


def errors(kernel: Loss, definition: Loss, logits_NV: Tensor) -> list[tuple[float, float]]:
    upstream_N = 2 * torch.rand(len(logits_NV), device=DEVICE) - 1
    truth = results(definition, logits_NV.double(), upstream_N)
    found = results(kernel, logits_NV, upstream_N), results(definition, logits_NV, upstream_N)
    return [
        tuple((value.double() - true).abs().max().item() for value in values)
        for *values, true in zip(*found, truth, strict=True)
    ]


def drawn(tokens: int, vocabulary: int, dtype: torch.dtype, *, excluded: bool) -> list[Tensor]:
    """Logits of a teacher and of a student near it, as a part of a wider tensor."""
    teacher_NV = 5 * torch.randn(tokens, vocabulary + 3, device=DEVICE)
    student_NV = teacher_NV + torch.randn_like(teacher_NV)
    if excluded:
        teacher_NV[:, 1] = student_NV[:, 1] = float("-inf")
    return [logits.to(dtype)[:, :vocabulary] for logits in (teacher_NV, student_NV)]


if __name__ == "__main__":
    mend()
    # Every fresh allocation is filled with NaN or the largest integer.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    found = {}
    for tokens, vocabulary in ((1, 2), (7, 63), (3, triton.BLOCK), (2, 2 * triton.BLOCK + 5)):
        for dtype in (torch.float32, torch.bfloat16):
            teacher_NV, student_NV = drawn(tokens, vocabulary, dtype, excluded=vocabulary > 2)
            target_N = torch.arange(tokens, device=DEVICE) * 2 % vocabulary
            title = f"{tokens} x {vocabulary} {dtype}"
            found[f"cross-entropy {title}"] = errors(
                lambda logits, target=target_N: triton.cross_entropy(logits, target),
                lambda logits, target=target_N: reference.cross_entropy(logits, target),
                student_NV,
            )
            for reverse, temperature in ((False, 1.0), (True, 1.0), (False, 5.0), (True, 0.7)):
                how = (temperature, reverse)
                found[f"divergence {title} {how}"] = errors(
                    lambda logits, t=teacher_NV, how=how: triton.divergence(t, logits, *how),
                    lambda logits, t=teacher_NV, how=how: reference.divergence(
                        t.to(torch.promote_types(logits.dtype, torch.float32)), logits, *how
                    ),
                    student_NV,
                )
    print(json.dumps(found))
