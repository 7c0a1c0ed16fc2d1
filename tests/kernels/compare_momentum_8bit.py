"""Runs in a process of its own, with Triton's interpreter where there is no GPU; prints JSON.

For every case how many codes, scales and entries of the direction differ from the reference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import product

import torch
from bfloat16_in_interpreter import mend
from torch import Tensor

from wrinklefree.kernels.momentum_8bit import reference, triton
from wrinklefree.kernels.momentum_8bit.reference import BLOCK, Map, zero_blocks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MAPS: tuple[Map, ...] = ("linear", "dynamic", "dynamic_unsigned")
STEPS = 3


def spread(*shape: int) -> Tensor:
    """Numbers over many magnitudes, some exactly 0."""
    drawn = torch.randn(shape) * 10.0 ** torch.empty(shape).uniform_(-8, 2)
    return drawn * (torch.rand(shape) > 0.1)


def halves() -> Tensor:
    """In a block whose largest is 127, all ties of the linear map."""
    return torch.cat([torch.arange(-253, 254) / 2, torch.tensor([127.0])])


def gradients() -> Iterator[tuple[str, list[Tensor]]]:
    for shape in [(1,), (63, 65), (3, 1000, 2), (5, BLOCK)]:
        yield f"normal {shape}", [torch.randn(shape) for _ in range(STEPS)]
        yield f"spread {shape}", [spread(*shape) for _ in range(STEPS)]
    yield "transposed", [torch.randn(63, 65).T for _ in range(STEPS)]
    yield "bfloat16", [torch.randn(63, 65).bfloat16() for _ in range(STEPS)]
    yield "zeros", [torch.zeros(63, 65)] * STEPS
    yield "ties", [halves()]
    yield "nan", [torch.randn(3, BLOCK).index_fill(1, torch.tensor([7]), torch.nan)]


def step_by(
    step: Callable[..., Tensor], entries: list[Tensor], kind: Map, **choices
) -> list[Tensor]:
    """Codes (0 in a block that has a NaN), scales and the last direction, after all entries."""
    codes, largest_K = (t.to(DEVICE) for t in zero_blocks(entries[0].contiguous(), kind))
    moved = torch.empty(0)
    for entry in entries:
        # At rate 1 the average becomes the entry itself.
        rate = 0.05 if len(entries) > 1 else 1.0
        moved = step(codes, largest_K, entry.to(DEVICE), rate, kind, **choices)
    of_entry = largest_K.repeat_interleave(BLOCK)[: codes.numel()].view(codes.shape)
    return [codes.where(of_entry.isfinite(), 0), largest_K, moved]


def differences(
    entries: list[Tensor], kind: Map, dtype: torch.dtype, *, nesterov: bool
) -> list[int]:
    """How many codes, scales and entries of the last direction differ."""
    choices = {"nesterov": nesterov, "squared": kind == "dynamic_unsigned", "dtype": dtype}
    expected = step_by(reference.move_average, entries, kind, **choices)
    actual = step_by(triton.move_average, entries, kind, **choices)
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
    pairs = zip(actual, expected, strict=True)
    return [
        int(
            (mine != theirs).logical_and(mine == mine).sum()
            + (mine.isnan() != theirs.isnan()).sum()
        )
        for mine, theirs in pairs
    ]


if __name__ == "__main__":
    mend()
    # Every fresh allocation is filled with NaN or the largest integer.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    results = {}
    for (name, entries), kind in product(gradients(), MAPS):
        results[f"{name} {kind}"] = [
            *differences(entries, kind, torch.float32, nesterov=False),
            *differences(entries, kind, torch.bfloat16, nesterov=True),
        ]
    print(json.dumps(results))
