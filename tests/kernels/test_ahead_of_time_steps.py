"""Kernels of the optimizers and of the relation loss are compiled for GPUs that are not here.

At the matrices of three models (R rows, C columns) and their relation heads (E features).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from wrinklefree.kernels.launch import Launch, recorded

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from ahead_of_time import REGISTERS, SHARED_BYTES, TARGETS, compile_launch

from wrinklefree.kernels.momentum_8bit.reference import Map, zero_blocks
from wrinklefree.kernels.momentum_8bit.triton import move_average
from wrinklefree.kernels.relation_loss.triton import relation_divergence
from wrinklefree.kernels.symmetric_product.triton import gram, polynomial

SMOLLM2, QWEN3_06B, QWEN3_4B = (576, 1536), (1024, 3072), (2560, 9728)
TOKENS = 2048
FLOAT, HALF = torch.float32, torch.bfloat16


def empty(*shape: int, dtype: torch.dtype = FLOAT) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def average(kind: Map, dtype: torch.dtype) -> None:
    codes, largest_K = zero_blocks(empty(*SMOLLM2), kind)
    squared = kind == "dynamic_unsigned"
    choices = {"nesterov": not squared, "squared": squared, "dtype": dtype}
    move_average(codes, largest_K, empty(*SMOLLM2), 0.05, kind, **choices)


def relation(size: int, *, causal: bool) -> None:
    student = empty(32, TOKENS, size).requires_grad_()
    pieces = empty(1, TOKENS, dtype=torch.int64)
    teacher = empty(32, TOKENS, 2 * size)
    relation_divergence(student, teacher, pieces, causal=causal, temperature=1.0).sum().backward()


USUAL: dict[str, Callable[[], object]] = {
    "linear average": lambda: average("linear", HALF),
    "dynamic average": lambda: average("dynamic", HALF),
    "gram of SmolLM2, tall": lambda: gram(empty(*SMOLLM2[::-1], dtype=HALF).mT),
    "gram of Qwen3-0.6B": lambda: gram(empty(*QWEN3_06B)),
    "polynomial of Qwen3-4B": lambda: polynomial(empty(2560, 2560, dtype=HALF), -4.8, 2.0),
    "relation of Qwen3": lambda: relation(64, causal=True),
}
EXHAUSTIVE: dict[str, Callable[[], object]] = {
    "unsigned average": lambda: average("dynamic_unsigned", FLOAT),
    "gram of Qwen3-4B": lambda: gram(empty(*QWEN3_4B, dtype=HALF)),
    "gram of Qwen3-4B, tall": lambda: gram(empty(*QWEN3_4B[::-1], dtype=HALF).mT),
    "gram of Qwen3-0.6B, tall": lambda: gram(empty(*QWEN3_06B[::-1]).mT),
    "polynomial of Qwen3-0.6B": lambda: polynomial(empty(1024, 1024), -4.8, 2.0),
    "polynomial of SmolLM2": lambda: polynomial(empty(576, 576, dtype=HALF), -4.8, 2.0),
    "gram of a stack": lambda: gram(empty(30, *SMOLLM2, dtype=HALF)),
    "relation of SmolLM2": lambda: relation(18, causal=True),
    "relation of Qwen3, both ways": lambda: relation(64, causal=False),
}
CASES = [
    pytest.param(
        call,
        target,
        id=f"{name}, {target}",
        marks=[] if name in USUAL and target in ("sm_90", "gfx942") else pytest.mark.exhaustive,
    )
    for name, call in (USUAL | EXHAUSTIVE).items()
    for target in TARGETS
]


@pytest.mark.parametrize(("call", "target"), CASES)
def test_kernel_compiles_without_spills(call: Callable[[], object], target: str) -> None:
    launches: list[Launch]
    with recorded() as launches:
        call()
    assert launches
    for launch in launches:
        resources = compile_launch(launch, target)
        print(target, resources)
        assert resources.spilled_bytes == 0, resources
        assert resources.shared_bytes <= SHARED_BYTES[target], resources
        assert 0 < resources.registers <= REGISTERS[target], resources
