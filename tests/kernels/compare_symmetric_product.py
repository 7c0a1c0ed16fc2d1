"""Runs in a process of its own, with Triton's interpreter where there is no GPU; prints JSON.

For every case the relative error of the kernel and of the reference against float64, and whether
the kernel's result is symmetric to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import torch
from bfloat16_in_interpreter import mend
from torch import Tensor

from wrinklefree.kernels.symmetric_product import reference, triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
B, C = -4.7750, 2.0315


def matrices() -> Iterator[tuple[str, Tensor]]:
    for shape in [(1, 1), (63, 100), (130, 67), (3, 65, 31), (2, 40, 129)]:
        yield str(shape), torch.randn(shape)
    yield "tall, on its side", torch.randn(100, 63).mT
    yield "a part of a stack", torch.randn(3, 80, 90)[1:, :70, 5:]


def error(actual: Tensor, truth: Tensor) -> float:
    return ((actual.double() - truth).norm() / truth.norm()).item()


def compare(x_KRC: Tensor, name: str, *numbers: float) -> tuple[float, float, bool]:
    """Errors of kernel and reference; symmetric?"""
    function: Callable[..., Tensor]
    function, kernel = getattr(reference, name), getattr(triton, name)
    truth, actual = function(x_KRC.double(), *numbers), kernel(x_KRC, *numbers)
    assert actual.dtype == x_KRC.dtype and actual.shape == truth.shape
    own = error(function(x_KRC, *numbers), truth)
    return error(actual, truth), own, torch.equal(actual, actual.mT)


if __name__ == "__main__":
    mend()
    # Every fresh allocation is filled with NaN or the largest integer.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    results = {}
    for name, matrix in matrices():
        for dtype in (torch.float32, torch.bfloat16):
            x_KRC = (matrix / matrix.norm()).to(DEVICE, dtype)
            results[f"gram of {name} {dtype}"] = compare(x_KRC, "gram")
            gram_KRR = reference.gram(x_KRC)
            gram_KRR = (gram_KRR + gram_KRR.mT) / 2
            results[f"polynomial of {name} {dtype}"] = compare(gram_KRR, "polynomial", B, C)
    large = torch.randn(2050, 33).to(DEVICE, torch.bfloat16)
    results["gram in large tiles"] = compare(large, "gram")
    print(json.dumps(results))
