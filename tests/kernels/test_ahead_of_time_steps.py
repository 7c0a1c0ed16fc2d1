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

from ahead_of_time import REGISTERS, SHARED_BYTES, TARGETS, compile_launch, key_of

from wrinklefree.kernels.momentum_8bit.reference import Map, zero_blocks
from wrinklefree.kernels.momentum_8bit.triton import move_average
from wrinklefree.kernels.relation_loss.triton import relation_divergence
from wrinklefree.kernels.symmetric_product.triton import gram, polynomial
from wrinklefree.kernels.vocabulary_loss.triton import cross_entropy, divergence

SMOLLM2 = (576, 1536)
MATRICES = {"SmolLM2-135M": SMOLLM2, "Qwen3-0.6B": (1024, 3072), "Qwen3-4B": (2560, 9728)}
TOKENS = 2048
FLOAT, HALF = torch.float32, torch.bfloat16


def empty(*shape: int, dtype: torch.dtype = FLOAT) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def average(kind: Map, dtype: torch.dtype, *, nesterov: bool = False) -> None:
    codes, largest_K = zero_blocks(empty(*SMOLLM2), kind)
    choices = {"nesterov": nesterov, "squared": kind == "dynamic_unsigned", "dtype": dtype}
    move_average(codes, largest_K, empty(*SMOLLM2), 0.05, kind, **choices)


def relation(size: int, *, causal: bool) -> None:
    student = empty(32, TOKENS, size).requires_grad_()
    pieces = empty(1, TOKENS, dtype=torch.int64)
    teacher = empty(32, TOKENS, 2 * size)
    relation_divergence(student, teacher, pieces, causal=causal, temperature=1.0).sum().backward()


def products(rows: int, columns: int, dtype: torch.dtype) -> None:
    gram(empty(rows, columns, dtype=dtype))
    gram(empty(columns, rows, dtype=dtype).mT)
    polynomial(empty(rows, rows, dtype=dtype), -4.8, 2.0)


def losses(vocabulary: int, dtype: torch.dtype) -> None:
    logits = empty(TOKENS, vocabulary, dtype=dtype).requires_grad_()
    cross_entropy(logits, empty(TOKENS, dtype=torch.int64)).sum().backward()
    for reverse in (False, True):
        # A diffusion student has a mask token more than its teacher.
        divergence(empty(TOKENS, vocabulary, dtype=dtype), logits, 2.0, reverse).sum().backward()
        divergence(
            empty(TOKENS, vocabulary - 1, dtype=dtype), logits[:, :-1], 2.0, reverse
        ).sum().backward()


CALLS: dict[str, Callable[[], object]] = {
    "average of Muon": lambda: average("linear", HALF, nesterov=True),
    "average of Muon in float32": lambda: average("linear", FLOAT, nesterov=True),
    "dynamic average of Muon": lambda: average("dynamic", HALF, nesterov=True),
    "averages of AdamW": lambda: [average(k, FLOAT) for k in ("dynamic", "dynamic_unsigned")],
    **{
        f"products of {name} in {dtype}": lambda shape=shape, dtype=dtype: products(*shape, dtype)
        for name, shape in MATRICES.items()
        for dtype in (FLOAT, HALF)
    },
    "gram of a stack": lambda: gram(empty(30, *SMOLLM2, dtype=HALF)),
    **{
        f"relation of {size} features, causal={causal}": lambda size=size, causal=causal: relation(
            size, causal=causal
        )
        for size in (18, 64)
        for causal in (True, False)
    },
    **{
        f"losses over {words} words in {dtype}": lambda words=words, dtype=dtype: losses(
            words, dtype
        )
        for words in (49152, 151936)
        for dtype in (FLOAT, HALF)
    },
}
CASES = [
    pytest.param(
        call,
        target,
        id=f"{name}, {target}",
        marks=[] if target in ("sm_90", "gfx942") else pytest.mark.exhaustive,
    )
    for name, call in CALLS.items()
    for target in TARGETS
]


@pytest.mark.parametrize(("call", "target"), CASES)
def test_kernel_compiles_without_spills(call: Callable[[], object], target: str) -> None:
    launches: list[Launch]
    with recorded() as launches:
        call()
    assert launches
    for launch in {key_of(launch): launch for launch in launches}.values():
        resources = compile_launch(launch, target)
        print(target, resources)
        assert resources.spilled_bytes == 0, resources
        assert resources.shared_bytes <= SHARED_BYTES[target], resources
        assert 0 < resources.registers <= REGISTERS[target], resources
