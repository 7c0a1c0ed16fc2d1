"""A step of Muon on the default model's matrices, against torch.optim.Muon and AdamW.

Shapes: R rows, C columns of a weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from _timing import default_settings, print_header, print_table, require_close, time_in_turns
from torch import Tensor, nn
from torch.optim import Optimizer

from wrinklefree.models.dense import build_scratch
from wrinklefree.optim.muon import Muon, scale_factor
from wrinklefree.optim.newton_schulz import COEFFICIENTS, ITERATIONS
from wrinklefree.optim.partition import partition_parameters

LR, WEIGHT_DECAY = 1e-3, 0.1
OURS, OURS_BFLOAT16 = "Muon", "Muon in bfloat16"
TORCH, ADAMW = "torch.optim.Muon", "torch.optim.AdamW"
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    ADAMW: lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=WEIGHT_DECAY),
    TORCH: lambda p: torch.optim.Muon(
        p, lr=LR, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
    ),
    OURS: lambda p: Muon(p, lr=LR, weight_decay=WEIGHT_DECAY, scale="match_rms"),
    # As torch.optim.Muon computes, to compare like with like; training uses float32.
    OURS_BFLOAT16: lambda p: Muon(
        p, lr=LR, weight_decay=WEIGHT_DECAY, scale="match_rms", compute_dtype=torch.bfloat16
    ),
}


def matrices_of(optimizer: Optimizer) -> list[nn.Parameter]:
    return optimizer.param_groups[0]["params"]


def copy_of(matrices: list[nn.Parameter]) -> list[nn.Parameter]:
    """The same values and gradients in tensors of their own."""
    copies = [nn.Parameter(matrix.detach().clone()) for matrix in matrices]
    for copy, matrix in zip(copies, matrices, strict=True):
        assert matrix.grad is not None
        copy.grad = matrix.grad.clone()
    return copies


def first_change(weight_RC: Tensor, gradient_RC: Tensor) -> Tensor:
    """What a first step adds to a weight, by singular values in float64."""
    u, singular, v = torch.linalg.svd(gradient_RC.double(), full_matrices=False)
    singular = singular / singular.norm()
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        singular = a * singular + b * singular**3 + c * singular**5
    rows, columns = weight_RC.shape
    update_RC = scale_factor(rows, columns, "match_rms") * (u * singular) @ v
    return -LR * (update_RC + WEIGHT_DECAY * weight_RC.double())


def check(matrices: list[nn.Parameter]) -> None:
    """One step against the closed form, with slack where Newton-Schulz rounds to bfloat16."""
    for name, tolerance in ((OURS, 1e-3), (OURS_BFLOAT16, 5e-2), (TORCH, 5e-2)):
        optimizer = OPTIMIZERS[name](copy_of(matrices))
        optimizer.step()
        for before, after in zip(matrices, matrices_of(optimizer), strict=True):
            assert before.grad is not None
            expected = first_change(before.detach(), before.grad)
            change = after.detach().double() - before.detach().double()
            require_close(change, expected, tolerance, f"the first step of {name}")


def main() -> None:
    settings, scratch = default_settings()
    torch.manual_seed(settings.seed)
    model = build_scratch(scratch.model, 8, settings.mixture.sequence_length, 0, settings.seed)
    matrices = partition_parameters(model).matrices
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    shapes = Counter(tuple(matrix.shape) for matrix in matrices)
    print_header("Optimizer step, float32 parameters")
    check(matrices)
    optimizers = {name: build(copy_of(matrices)) for name, build in OPTIMIZERS.items()}
    calls = {name: optimizer.step for name, optimizer in optimizers.items()}
    title = ", ".join(f"{count} of {rows}x{columns}" for (rows, columns), count in shapes.items())
    print_table(title, time_in_turns(calls), [TORCH, ADAMW])


if __name__ == "__main__":
    main()
