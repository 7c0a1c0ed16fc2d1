"""Runs in a process of its own, with Triton's interpreter where there is no GPU; prints JSON.

One entry per case: whether codes and scales of the Triton kernel are those of the reference.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def weight_cases() -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    for rows, columns in [(1, 1), (63, 100), (64, 128), (257, 31)]:
        weight = torch.randn(rows, columns, generator=generator)
        yield f"normal {rows}x{columns}", weight
        yield f"transposed {rows}x{columns}", weight.T
    # absmean 1, so that 0.5, 1.5 and 2.5 are exact ties.
    yield "ties", torch.tensor([[0.5, -0.5, 1.5, -1.5], [2.5, 0.5, 0.5, 0.5]])
    yield "zeros", torch.zeros(63, 100)
    yield "tiny", torch.full((3, 5), 1e-9)
    yield "bfloat16", torch.randn(63, 100, generator=generator).bfloat16()


def activation_cases() -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    for shape in [(1, 1), (63, 100), (2, 3, 63), (5, 1000)]:
        yield f"normal {shape}", torch.randn(shape, generator=generator)
    # absmax 127, so that the scale is 1 and halves are exact ties.
    halves = torch.arange(-253, 254) / 2
    yield "ties", torch.cat([halves, torch.tensor([127.0])])[None]
    near = torch.cat([torch.nextafter(halves, torch.tensor(sign)) for sign in (-999.0, 999.0)])
    yield "next to ties", torch.cat([near.clamp(-127, 127), torch.tensor([127.0])])[None]
    yield "zeros", torch.zeros(3, 63)
    yield "tiny", torch.full((3, 63), 1e-7)
    yield "bfloat16", torch.randn(63, 100, generator=generator).bfloat16()
    with_nan = torch.randn(3, 63, generator=generator)
    with_nan[1, 7] = torch.nan
    yield "nan", with_nan


def same(operation: str, value: Tensor) -> bool:
    package = f"wrinklefree.kernels.{operation}"
    results: list[tuple[Tensor, Tensor]] = []
    for module in ("reference", "triton"):
        function: Callable[[Tensor], tuple[Tensor, Tensor]] = getattr(
            importlib.import_module(f"{package}.{module}"), operation
        )
        results.append(function(value.to(DEVICE)))
    (codes, scale), (codes_triton, scale_triton) = results
    finite = torch.isfinite(scale).expand_as(codes)
    return (
        torch.equal(codes[finite], codes_triton[finite])
        and torch.equal(scale.nan_to_num(-1.0), scale_triton.nan_to_num(-1.0))
        and codes_triton.dtype == torch.int8
        and codes_triton.shape == codes.shape
        and scale_triton.shape == scale.shape
    )


if __name__ == "__main__":
    # Every fresh allocation is filled with NaN or the largest integer.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    name = sys.argv[1]
    cases = weight_cases() if name == "quantize_weight" else activation_cases()
    print(json.dumps({case: same(name, value) for case, value in cases}))
