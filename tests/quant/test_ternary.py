from __future__ import annotations

import pytest
import torch

from wrinklefree.quant.ternary import (
    activation_codes,
    quantize_activation,
    quantize_weight,
    ternary_codes,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_are_codes_times_scale(dtype: torch.dtype) -> None:
    weight = torch.randn(63, 100).to(dtype)
    codes, scale = ternary_codes(weight)
    assert torch.equal(quantize_weight(weight), (codes * scale).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("magnitude", [1.0, 1e-7, 3e30])
def test_activation_values_are_codes_over_scale(dtype: torch.dtype, magnitude: float) -> None:
    """The fast path without integers and without the clamp computes the definition."""
    activation = (torch.randn(5, 63, 100) * magnitude).to(dtype)
    codes, scale = activation_codes(activation)
    assert torch.equal(quantize_activation(activation), (codes / scale).to(dtype))


def test_nan_reaches_the_whole_token_and_no_other() -> None:
    activation = torch.randn(3, 63)
    activation[1, 7] = torch.nan
    assert quantize_activation(activation).isnan().all(dim=-1).tolist() == [False, True, False]


def test_inputs_are_left_as_they_are() -> None:
    weight, activation = torch.randn(64, 63), torch.randn(5, 63)
    before = weight.clone(), activation.clone()
    quantize_weight(weight)
    quantize_activation(activation)
    assert torch.equal(weight, before[0])
    assert torch.equal(activation, before[1])


def test_quantizing_twice_shrinks_gaussian_weights_to_the_density_of_their_codes() -> None:
    once = quantize_weight(torch.randn(512, 512, dtype=torch.float64))
    density = (once != 0).double().mean()
    twice = quantize_weight(once)
    assert density.item() == pytest.approx(0.69, abs=0.01)
    assert (twice.abs().max() / once.abs().max()).item() == pytest.approx(density.item())
