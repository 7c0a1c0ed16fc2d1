"""Kernels of the optimizers and of the relation loss, in Triton's interpreter or on a GPU."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from interpreted import output_of
from torch import nn


def results_of(script: str) -> dict[str, Any]:
    return json.loads(output_of(script))


def test_a_step_of_an_eight_bit_average_gives_the_bits_of_the_reference() -> None:
    results = results_of("compare_momentum_8bit.py")
    assert len(results) == 39
    assert {case: found for case, found in results.items() if any(found)} == {}


def test_symmetric_products_are_as_exact_as_torch_and_symmetric() -> None:
    results = results_of("compare_symmetric_product.py")
    assert len(results) == 29
    for case, (error, of_torch, symmetric) in results.items():
        assert symmetric, case
        assert error <= 1.1 * of_torch + 5e-8, case


def test_relation_divergence_and_its_gradient_are_as_exact_as_the_definition() -> None:
    results = results_of("compare_relation_loss.py")
    assert len(results) == 7
    for case, ((error, of_definition), (gradient_error, gradient_of_definition)) in results.items():
        rounding = 2**-8 if case == "bfloat16" else 0.0
        assert error <= 2 * of_definition + 1e-6, case
        assert gradient_error <= 2 * gradient_of_definition + 1e-6 + rounding, case


def test_losses_over_the_vocabulary_and_their_gradients_are_as_exact_as_the_definition() -> None:
    results = results_of("compare_vocabulary_loss.py")
    assert len(results) == 40
    for case, ((error, of_definition), (gradient_error, gradient_of_definition)) in results.items():
        assert error <= 2 * of_definition + 5e-6, case
        assert gradient_error <= 2 * gradient_of_definition + 2e-6, case


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_muon_in_eight_bits_has_the_same_momentum_on_a_gpu(kind: str) -> None:
    from wrinklefree.optim.muon8bit import Muon8bit

    start, gradients = torch.randn(63, 100), [torch.randn(63, 100) for _ in range(3)]
    ends = []
    for device in ("cpu", "cuda"):
        parameter = nn.Parameter(start.to(device))
        optimizer = Muon8bit([parameter], lr=0.02, scale="match_rms", quantization=kind)
        for gradient in gradients:
            parameter.grad = gradient.to(device)
            optimizer.step()
        ends.append({"weight": parameter.detach(), **optimizer.state[parameter]})
    on_cpu, on_gpu = ({name: value.cpu() for name, value in end.items()} for end in ends)
    assert torch.equal(on_cpu["momentum_codes"], on_gpu["momentum_codes"])
    assert torch.equal(on_cpu["momentum_scales"], on_gpu["momentum_scales"])
    torch.testing.assert_close(on_gpu["weight"], on_cpu["weight"], rtol=1e-3, atol=1e-4)
