"""Kernels of the optimizers and of the relation loss on a GPU, against torch and the floor.

Shapes: R rows, C columns of a weight; G relation matrices, T tokens, E size of a relation head.
"""

from __future__ import annotations

from collections.abc import Callable

import _peers
import torch
from _timing import (
    H100_BFLOAT16,
    H100_BYTES_PER_SECOND,
    NOT_MEASURED,
    print_header,
    require,
    require_close,
    time_on_gpu,
)
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim import Optimizer

from wrinklefree.kernels.momentum_8bit import reference as average
from wrinklefree.kernels.symmetric_product import reference as product
from wrinklefree.optim.adamw8bit import AdamW8bit
from wrinklefree.optim.muon import Muon, scale_factor
from wrinklefree.optim.newton_schulz import orthogonalize

MODELS = {"SmolLM2-135M": (576, 1536), "Qwen3-0.6B": (1024, 3072), "Qwen3-4B": (2560, 9728)}
H100_FLOAT32 = 67e12
TOKENS, HEADS, SIZE = 2048, 32, 64
RATE, B, C = 0.05, -4.7750, 2.0315
EXPERTS = (128, 768, 2048)
SQUARE, LR = (4096, 4096), 1e-3


def floors(rows: int, columns: int) -> dict[str, float]:
    """Least milliseconds on an H100: the bytes of an average, the operations of the others."""
    relation = HEADS * TOKENS**2 * SIZE * 2
    return {
        "average of one matrix": rows * columns * 10 / H100_BYTES_PER_SECOND * 1e3,
        "gram, bfloat16": rows * rows * columns / H100_BFLOAT16 * 1e3,
        "polynomial, bfloat16": rows**3 / H100_BFLOAT16 * 1e3,
        "relation divergence (causal: half)": 2 * relation / H100_FLOAT32 * 1e3,
        "its gradient": 3 * relation / H100_FLOAT32 * 1e3,
    }


def time_average(gradient_RC: Tensor) -> None:
    from wrinklefree.kernels.momentum_8bit import triton

    compiled = torch.compile(average.move_average)
    for kind in ("linear", "dynamic"):
        steps = {"torch": average.move_average, "compiled": compiled, "triton": triton.move_average}
        states = {name: average.zero_blocks(gradient_RC, kind) for name in steps}
        for _ in range(3):
            for name in ("torch", "triton"):
                steps[name](*states[name], gradient_RC, RATE, kind)
        same = (torch.equal(a, b) for a, b in zip(states["torch"], states["triton"], strict=True))
        require(all(same), f"codes and scales of the reference ({kind})")
        calls = {
            name: lambda step=step, state=states[name], kind=kind: step(
                *state, gradient_RC, RATE, kind
            )
            for name, step in steps.items()
        }
        time_on_gpu(f"{kind} average {tuple(gradient_RC.shape)}", calls, "torch")


def time_products(x_RC: Tensor) -> None:
    from wrinklefree.kernels.symmetric_product import triton

    x_RC = (x_RC / x_RC.norm()).bfloat16()
    gram_RR = triton.gram(x_RC)
    require_close(gram_RR, product.gram(x_RC.double()), 4e-3, "gram")
    exact = product.polynomial(gram_RR.double(), B, C)
    require_close(triton.polynomial(gram_RR, B, C), exact, 4e-3, "polynomial")
    compiled = torch.compile(product.gram), torch.compile(product.polynomial)
    grams = {
        "torch": lambda: product.gram(x_RC),
        "compiled": lambda: compiled[0](x_RC),
        "triton": lambda: triton.gram(x_RC),
    }
    time_on_gpu(f"gram {tuple(x_RC.shape)} bfloat16", grams, "torch")
    polynomials = {
        "torch": lambda: product.polynomial(gram_RR, B, C),
        "compiled": lambda: compiled[1](gram_RR, B, C),
        "triton": lambda: triton.polynomial(gram_RR, B, C),
    }
    time_on_gpu(f"polynomial {tuple(gram_RR.shape)} bfloat16", polynomials, "torch")


def relations_in_torch(student_GTE: Tensor, teacher_GTE: Tensor) -> Tensor:
    """The definition, causal, at temperature 1, one document."""
    outside = torch.ones(TOKENS, TOKENS, dtype=torch.bool, device=student_GTE.device).triu(1)
    logs = [
        (rows @ rows.mT).masked_fill(outside, float("-inf")).log_softmax(-1)
        for rows in (teacher_GTE, student_GTE)
    ]
    return (logs[0].exp() * (logs[0] - logs[1]).masked_fill(outside, 0.0)).sum(-1)


def time_relations() -> None:
    from wrinklefree.kernels.relation_loss.triton import relation_divergence

    student, teacher = (
        normalize(torch.randn(HEADS, TOKENS, SIZE, device="cuda"), dim=-1) for _ in range(2)
    )
    pieces = torch.zeros(1, TOKENS, dtype=torch.int64, device="cuda")

    def ours(student_GTE: Tensor, teacher_GTE: Tensor) -> Tensor:
        return relation_divergence(student_GTE, teacher_GTE, pieces, causal=True, temperature=1.0)

    def both_ways(function: Callable[[Tensor, Tensor], Tensor], rows: Tensor) -> tuple[Tensor, ...]:
        rows = rows.detach().requires_grad_()
        divergence_GT = function(rows, teacher.to(rows.dtype))
        return divergence_GT, *torch.autograd.grad(divergence_GT.sum(), rows)

    few = student[:2].double(), teacher[:2].double()
    require_close(ours(student, teacher)[:2], relations_in_torch(*few), 1e-4, "divergence")
    compiled = torch.compile(relations_in_torch)
    functions = {"torch": relations_in_torch, "compiled": compiled, "triton": ours}
    truth = both_ways(relations_in_torch, student)[1]
    for name, function in functions.items():
        require_close(both_ways(function, student)[1], truth, 1e-3, f"gradient of {name}")
    calls = {
        name: lambda function=function: both_ways(function, student)
        for name, function in functions.items()
    }
    time_on_gpu(f"relations, {HEADS} heads of {SIZE}, {TOKENS} tokens, both passes", calls, "torch")


def time_steps(
    title: str,
    optimizers: dict[str, Callable[[list[nn.Parameter]], Optimizer]],
    first: Callable[[Tensor], Tensor],
    shape: tuple[int, int],
) -> None:
    """A step on a matrix of float32, whose first one from 0 is ``-LR * first(gradient)``."""
    gradient, calls = torch.randn(*shape, device="cuda"), {}
    for name, make in optimizers.items():
        weight = nn.Parameter(torch.zeros_like(gradient))
        weight.grad = gradient
        calls[name] = make([weight]).step
        calls[name]()
        require_close(weight.detach() / -LR, first(gradient), 5e-2, f"first step of {name}")
    time_on_gpu(f"{title}, {shape[0]} x {shape[1]}", calls, next(iter(calls)))


def time_optimizers(shape: tuple[int, int]) -> None:
    muons: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
        "torch.optim.Muon": lambda weights: torch.optim.Muon(
            weights, lr=LR, adjust_lr_fn="match_rms_adamw"
        ),
        "ours": lambda weights: Muon(
            weights, lr=LR, scale="match_rms", weight_decay=0.1, compute_dtype=torch.bfloat16
        ),
    }
    factor = scale_factor(*shape, "match_rms")
    time_steps("Muon in bfloat16", muons, lambda gradient: factor * orthogonalize(gradient), shape)
    settings = {"lr": LR, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    adams: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
        "torch.optim.AdamW": lambda weights: torch.optim.AdamW(weights, fused=True, **settings),
        "ours, 8 bits": lambda weights: AdamW8bit([{"params": weights}], settings),
    }
    if peers := _peers.peer("torchao", "torchao.optim"):
        adams["torchao, 8 bits"] = lambda weights: peers.AdamW8bit(weights, **settings)
    time_steps("AdamW", adams, torch.sign, shape)


def time_stack() -> None:
    """Newton-Schulz of a layer's experts, as many and as large as in Qwen3-30B-A3B."""
    stack_KRC = torch.randn(*EXPERTS, device="cuda")
    calls: dict[str, Callable[[], Tensor | list[Tensor]]] = {
        "one by one": lambda: [orthogonalize(matrix, torch.bfloat16) for matrix in stack_KRC],
        "at once": lambda: orthogonalize(stack_KRC, torch.bfloat16),
    }
    pairs = zip(*(call() for call in calls.values()), strict=True)
    for alone, together in pairs:
        require_close(together, alone, 2e-2, "a matrix of a stack")
    time_on_gpu(f"Newton-Schulz in bfloat16, {EXPERTS}", calls, "one by one")


def main() -> None:
    print_header("Kernels of the optimizers and of the relation loss")
    for model, (rows, columns) in MODELS.items():
        print(f"\n{model}: {rows} x {columns}, floor on an H100 in milliseconds")
        for name, milliseconds in floors(rows, columns).items():
            print(f"  {name:<36}{milliseconds:10.4f}")
        if torch.cuda.is_available():
            time_average(torch.randn(columns, rows, device="cuda"))
            time_products(torch.randn(rows, columns, device="cuda"))
    if torch.cuda.is_available():
        time_relations()
        for shape in (*MODELS.values(), SQUARE):
            time_optimizers(shape)
        time_stack()
    else:
        print(f"\n{NOT_MEASURED}")


if __name__ == "__main__":
    main()
