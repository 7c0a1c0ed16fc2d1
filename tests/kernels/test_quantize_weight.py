from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.kernels.quantize_weight import quantize_weight


def slow_codes(weight: torch.Tensor, scale: float) -> list[list[int]]:
    """Python's ``round`` is half to even."""
    rows = weight.double().tolist()
    return [[max(-1, min(1, round(value / scale))) for value in row] for row in rows]


@given(seed=st.integers(0, 2**31), rows=st.integers(1, 9), columns=st.integers(1, 100))
@settings(max_examples=25, deadline=None)
def test_codes_are_the_nearest_ternary_multiples_of_the_mean_magnitude(
    seed: int, rows: int, columns: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    codes, scale = quantize_weight(weight)
    assert codes.dtype == torch.int8
    assert scale.item() == pytest.approx(
        sum(abs(v) for v in weight.flatten().tolist()) / weight.numel()
    )
    assert codes.tolist() == slow_codes(weight, scale.item())


def test_ties_round_to_even() -> None:
    weight = torch.tensor([[0.5, -0.5, 1.5, -1.5], [2.5, 0.5, 0.5, 0.5]])
    codes, scale = quantize_weight(weight)
    assert scale.item() == 1.0
    assert codes.tolist() == [[0, 0, 1, -1], [1, 0, 0, 0]]


def test_scale_does_not_depend_on_the_order_of_the_sum() -> None:
    weight = torch.randn(1023, 100)
    shuffled = weight.flatten()[torch.randperm(weight.numel())]
    assert torch.equal(quantize_weight(weight)[1], quantize_weight(shuffled)[1])


def test_zero_weight_has_the_least_scale_and_no_codes() -> None:
    codes, scale = quantize_weight(torch.zeros(63, 100))
    assert scale.item() == pytest.approx(1e-5)
    assert not codes.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    weight = torch.randn(63, 100).to(dtype)
    codes, scale = quantize_weight(weight)
    expected_codes, expected_scale = quantize_weight(weight.float())
    assert scale.dtype == torch.float32
    assert torch.equal(scale, expected_scale)
    assert torch.equal(codes, expected_codes)
