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

from wrinklefree.kernels.compiled import SHARED_BYTES, TARGETS, compile_launch
from wrinklefree.kernels.quantize_activation.triton import quantize_activation
from wrinklefree.kernels.quantize_weight.triton import quantize_weight

SHAPES = {"SmolLM2-135M": (576, 1536), "Qwen3-0.6B": (1024, 3072), "Qwen3-4B": (2560, 9728)}
TOKENS = 512


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


# Of each kernel: a call of its wrapper by hidden and inner features and dtype.
CALLS: dict[str, Callable[[int, int, torch.dtype], object]] = {
    "quantize_activation": lambda hidden, inner, dtype: [
        quantize_activation(empty(TOKENS, features, dtype=dtype)) for features in (hidden, inner)
    ],
    "quantize_weight": lambda hidden, inner, dtype: quantize_weight(
        empty(inner, hidden, dtype=dtype)
    ),
}


def distinct_launches(name: str, dtype: torch.dtype) -> list[Launch]:
    """Of all shapes, without those that compile to the same code."""
    with recorded() as launches:
        for hidden, inner in SHAPES.values():
            CALLS[name](hidden, inner, dtype)
    assert launches
    return list({key_of(launch): launch for launch in launches}.values())


def key_of(launch: Launch) -> str:
    """What Triton specializes on: dtypes, and whether an integer is 1 or a multiple of 16."""
    arguments = [
        argument.dtype if isinstance(argument, Tensor) else (argument == 1, argument % 16 == 0)
        for argument in launch.arguments
    ]
    return f"{launch.kernel.__name__} {arguments} {launch.constants}"


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
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.exhaustive)], ids=str
)
@pytest.mark.parametrize("name", CALLS)
def test_kernel_compiles_without_spills(name: str, dtype: torch.dtype, target: str) -> None:
    assert target in TARGETS
    for launch in distinct_launches(name, dtype):
        resources = compile_launch(launch, target)
        print(target, dtype, resources, launch.constants)
        assert resources.spilled_bytes == 0, resources
        assert resources.shared_bytes <= SHARED_BYTES[target], resources


def test_a_kernel_that_runs_out_of_registers_is_seen() -> None:
    with recorded() as launches:
        quantize_activation(empty(TOKENS, 4096))
    starved = launches[0]._replace(constants=launches[0].constants | {"maxnreg": 24})
    assert compile_launch(starved, "sm_90").spilled_bytes > 0
