"""Runs in a process of its own, with Triton's interpreter where there is no GPU; prints JSON.

For every case the relative errors of divergence and gradient against the definition in float64: of
the kernel, and of the definition in float32.

Shapes: G relation matrices, B rows of the batch, T tokens, E and F sizes of a relation head.
"""

from __future__ import annotations

import json

import torch
from bfloat16_in_interpreter import mend
from torch import Tensor
from torch.nn.functional import normalize

from wrinklefree.kernels.relation_loss.reference import relation_divergence as definition
from wrinklefree.kernels.relation_loss.triton import relation_divergence

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def pieces(batch: int, tokens: int) -> Tensor:
    """Documents of random lengths, then padding in every other row of the batch."""
    piece_BT = (torch.rand(batch, tokens) < 0.05).cumsum(1)
    piece_BT[::2, tokens - tokens // 5 :] = -1
    return piece_BT


def run(function, student_GTE: Tensor, upstream_GT: Tensor, *inputs: Tensor, **choices):
    """Divergence, and the gradient of the rows without its part along them.

    That part, of which small differences of large numbers remain, the normalisation undoes.
    """
    student_GTE = student_GTE.detach().requires_grad_()
    divergence_GT = function(student_GTE, *inputs, **choices)
    upstream_GT = upstream_GT.to(divergence_GT.dtype)
    (gradient_GTE,) = torch.autograd.grad(divergence_GT, student_GTE, upstream_GT)
    rows, across = student_GTE.detach().double(), gradient_GTE.double()
    return divergence_GT.detach(), across - rows * (across * rows).sum(-1, keepdim=True)


def errors(
    sizes: tuple[int, int, int, int, int], dtype: torch.dtype, *, causal: bool, temperature: float
) -> list[tuple[float, float]]:
    """Of divergence and gradient: the kernel's error, and that of the definition in float32."""
    batch, heads, tokens, student_size, teacher_size = sizes
    student_GTE, teacher_GTF = (
        normalize(torch.randn(batch * heads, tokens, size), dim=-1).to(DEVICE, dtype)
        for size in (student_size, teacher_size)
    )
    student_GTE[0, tokens // 2] = 0.0
    piece_BT = pieces(batch, tokens).to(DEVICE)
    upstream_GT = torch.randn(batch * heads, tokens, device=DEVICE)
    choices = {"causal": causal, "temperature": temperature}
    student, teacher = student_GTE.double(), teacher_GTF.double()
    truth = run(definition, student, upstream_GT, teacher, piece_BT, **choices)
    in_float32 = run(definition, student.float(), upstream_GT, teacher.float(), piece_BT, **choices)
    actual = run(relation_divergence, student_GTE, upstream_GT, teacher_GTF, piece_BT, **choices)
    return [
        tuple(((value.double() - true).norm() / true.norm()).item() for value in values)
        for *values, true in zip(actual, in_float32, truth, strict=True)
    ]


if __name__ == "__main__":
    mend()
    # Every fresh allocation is filled with NaN or the largest integer.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    results = {}
    for sizes in [(2, 1, 5, 3, 7), (1, 2, 63, 18, 6), (2, 2, 70, 33, 70)]:
        for causal, temperature in ((False, 0.05), (True, 1.0)):
            name = f"{sizes} causal={causal} {temperature}"
            chosen = {"causal": causal, "temperature": temperature}
            results[name] = errors(sizes, torch.float32, **chosen)
    results["bfloat16"] = errors((1, 2, 63, 18, 33), torch.bfloat16, **chosen)
    print(json.dumps(results))
