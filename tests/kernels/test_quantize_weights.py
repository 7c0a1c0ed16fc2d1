from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from wrinklefree.kernels import in_cache
from wrinklefree.kernels.quantize_weights import (
    FittedScale,
    blocks,
    quantize_weights,
    reference,
)
from wrinklefree.quant.ternary import ternary_codes


def one(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    (codes,) = quantize_weights([weight], "absmean")
    return codes


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
    codes, scale = one(weight)
    assert codes.dtype == torch.int8
    assert scale.item() == pytest.approx(
        sum(abs(v) for v in weight.flatten().tolist()) / weight.numel()
    )
    assert codes.tolist() == slow_codes(weight, scale.item())


def test_ties_round_to_even() -> None:
    weight = torch.tensor([[0.5, -0.5, 1.5, -1.5], [2.5, 0.5, 0.5, 0.5]])
    codes, scale = one(weight)
    assert scale.item() == 1.0
    assert codes.tolist() == [[0, 0, 1, -1], [1, 0, 0, 0]]


def test_scale_does_not_depend_on_the_order_of_the_sum() -> None:
    weight = torch.randn(1023, 100)
    shuffled = weight.flatten()[torch.randperm(weight.numel())]
    assert torch.equal(one(weight)[1], one(shuffled)[1])


def test_zero_weight_has_the_least_scale_and_no_codes() -> None:
    codes, scale = one(torch.zeros(63, 100))
    assert scale.item() == pytest.approx(1e-5)
    assert not codes.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    weight = torch.randn(63, 100).to(dtype)
    codes, scale = one(weight)
    expected_codes, expected_scale = one(weight.float())
    assert scale.dtype == torch.float32
    assert torch.equal(scale, expected_scale)
    assert torch.equal(codes, expected_codes)


@pytest.mark.parametrize("scale", ["absmean", "least_squares"])
def test_each_weight_is_quantized_as_if_alone(scale: FittedScale) -> None:
    weights = [torch.randn(63, 100), 1e3 * torch.randn(1, 1), torch.zeros(4, 4), torch.randn(31)]
    for weight, (codes, one_scale) in zip(weights, quantize_weights(weights, scale), strict=True):
        expected_codes, expected_scale = ternary_codes(weight, scale)
        assert torch.equal(codes, expected_codes)
        assert torch.equal(one_scale, expected_scale)


def test_rows_with_scales_of_their_own_are_weights_of_their_own() -> None:
    weight = torch.randn(7, 63)
    codes, scales = zip(*quantize_weights(weight.unbind(), "least_squares"), strict=True)
    expected_codes, expected_scales = ternary_codes(weight, "least_squares", vectors=7)
    assert torch.equal(torch.stack(codes), expected_codes)
    assert torch.equal(torch.stack(scales)[:, None], expected_scales)


def test_weights_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="weight 1 is .*bfloat16"):
        quantize_weights([torch.zeros(3), torch.zeros(3).bfloat16()], "absmean")
    with pytest.raises(ValueError, match="weight 0 .*contiguous: False"):
        quantize_weights([torch.zeros(3, 4).T], "absmean")


@pytest.mark.parametrize("shape", [(1, 200_001), (3, 70_000), (300, 601), (1, 65_536), (5, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scales_by_blocks_are_the_reference_s(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = (torch.randn(shape) * 0.02).to(dtype)
    weight[0, : weight.shape[1] // 2] *= 30  # blocks that differ
    for name in ("absmean_scale", "least_squares_scale"):
        found, expected = getattr(blocks, name)(weight), getattr(reference, name)(weight)
        # Of sums in float64 the last bits are their order's.
        torch.testing.assert_close(
            found, expected, rtol=1e-14 if dtype.itemsize == 8 else 0, atol=0
        )


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf, 3e38])
def test_scales_by_blocks_of_nothing_and_of_no_number_are_the_reference_s(value: float) -> None:
    weight = torch.full((1, 70_000), value)
    expected = reference.least_squares_scale(weight)
    torch.testing.assert_close(blocks.least_squares_scale(weight), expected, equal_nan=True)


def test_only_tensors_with_memory_go_by_blocks() -> None:
    assert in_cache.outgrows_cache(torch.ones(2**16 + 1))
    assert not in_cache.outgrows_cache(torch.ones(2**16))
    with FakeTensorMode():  # a plan of billions of weights would make millions of blocks
        assert not in_cache.outgrows_cache(torch.ones(2**16 + 1))
