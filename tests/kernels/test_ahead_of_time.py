"""Every Triton kernel is compiled, without a GPU, for the GPUs that it is meant for.

Wrappers are called on tensors of the meta device at the layer shapes of three models.
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

from ahead_of_time import REGISTERS, SHARED_BYTES, TARGETS, compile_launch, compiled_for, key_of

from wrinklefree.kernels.packed_matmul.triton import packed_matmul
from wrinklefree.kernels.quantize_activation.triton import quantize_activation
from wrinklefree.kernels.quantize_weights.triton import quantize_weights
from wrinklefree.kernels.subln_quantize.triton import subln_gradients, subln_quantize
from wrinklefree.kernels.ternary_matmul.triton import ternary_matmul

SHAPES = {"SmolLM2-135M": (576, 1536), "Qwen3-0.6B": (1024, 3072), "Qwen3-4B": (2560, 9728)}
TOKENS = 512


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def codes(*shape: int) -> Tensor:
    return empty(*shape, dtype=torch.int8)


def packed(outputs: int, inputs: int) -> Tensor:
    return empty(outputs // 4, inputs, dtype=torch.uint8)


def scales(outputs: int) -> tuple[Tensor, Tensor]:
    """Of a whole weight, and of each of its rows."""
    return empty(), empty(outputs, 1)


# Of each kernel: a call of its wrapper by hidden and inner features and dtype.
CALLS: dict[str, Callable[[int, int, torch.dtype], object]] = {
    "quantize_activation": lambda hidden, inner, dtype: [
        quantize_activation(empty(TOKENS, features, dtype=dtype)) for features in (hidden, inner)
    ],
    "packed_matmul": lambda hidden, inner, dtype: [
        packed_matmul(codes(tokens, inner), empty(tokens, 1), packed(hidden, inner), scale, dtype)
        for scale in scales(hidden)
        for tokens in (1, 7, 16)
    ],
    "subln_quantize": lambda hidden, inner, dtype: [
        subln_quantize(empty(TOKENS, features, dtype=dtype), empty(features), 1e-6)
        for features in (hidden, inner)
    ],
    "subln_gradients": lambda hidden, inner, dtype: [
        subln_gradients(value.float(), value, empty(features), empty(TOKENS, 1))
        for features in (hidden, inner)
        for value in [empty(TOKENS, features, dtype=dtype)]
    ],
    "ternary_matmul": lambda hidden, inner, dtype: [
        ternary_matmul(codes(tokens, inner), empty(tokens, 1), codes(hidden, inner), scale, dtype)
        for scale in scales(hidden)
        for tokens in (TOKENS, 4 * TOKENS)
    ],
    "quantizing": lambda hidden, inner, dtype: [
        product(empty(tokens, inner, dtype=dtype), None, weight, scale, dtype)
        for scale in scales(hidden)
        for product, weight, numbers in (
            (ternary_matmul, codes(hidden, inner), (16, 32, 64)),
            (packed_matmul, packed(hidden, inner), (1, 7, 16)),
        )
        for tokens in numbers
    ],
    "quantize_weights": lambda hidden, inner, dtype: quantize_weights(
        [empty(inner, hidden, dtype=dtype), empty(hidden, inner, dtype=dtype)], "least_squares"
    ),
}


def distinct_launches(name: str, dtype: torch.dtype) -> list[Launch]:
    """Of all shapes, without those that compile to the same code."""
    with recorded() as launches:
        for hidden, inner in SHAPES.values():
            CALLS[name](hidden, inner, dtype)
    assert launches
    return list({key_of(launch): launch for launch in launches}.values())


# The first two are what `make test` has the time for.
@pytest.mark.parametrize(
    "target",
    [
        "sm_90",
        "gfx942",
        *(
            pytest.param(name, marks=pytest.mark.exhaustive)
            for name in ("sm_80", "sm_100", "sm_120")
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_kernel_compiles_without_spills(name: str, dtype: torch.dtype, target: str) -> None:
    assert target in TARGETS
    for launch in distinct_launches(name, dtype):
        resources = compile_launch(launch, target)
        print(target, dtype, resources, launch.constants)
        assert resources.spilled_bytes == 0, resources
        assert resources.shared_bytes <= SHARED_BYTES[target], resources
        assert 0 < resources.registers <= REGISTERS[target], resources


@pytest.mark.parametrize(
    ("target", "assembly", "instruction"),
    [("sm_90", "ptx", "dp4a"), ("gfx942", "amdgcn", "v_dot4_i32_i8")],
)
def test_a_packed_product_of_one_token_multiplies_four_weights_at_once(
    target: str, assembly: str, instruction: str
) -> None:
    with recorded() as launches:
        packed_matmul(codes(1, 1024), empty(1, 1), packed(512, 1024), empty())
    assert instruction in compiled_for(launches[0], target).asm[assembly]


def test_a_kernel_that_runs_out_of_registers_is_seen() -> None:
    with recorded() as launches:
        quantize_activation(empty(TOKENS, 4096))
    starved = launches[0]._replace(constants=launches[0].constants | {"maxnreg": 24})
    assert compile_launch(starved, "sm_90").spilled_bytes > 0
