"""Scales of every granularity against loops over weights in Python, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wrinklefree.quant.scales import count_vectors, fitted_scale
from wrinklefree.quant.settings import QuantizerSettings, Scale
from wrinklefree.quant.ternary import quantize_weight, ternary_codes

HEAD, GROUP = 7, 64
GRANULARITIES = ("tensor", "head", "row", "group")
ROWS, COLUMNS = 63, 192


def vectors_of(granularity: str, rows: int = ROWS, columns: int = COLUMNS) -> int:
    quantizer = QuantizerSettings.model_validate({"granularity": granularity, "group_size": GROUP})
    return count_vectors(rows, columns, quantizer, HEAD)


def owner(granularity: str, row: int, column: int) -> tuple[int, ...]:
    """What names the scale of a weight."""
    return {
        "tensor": (),
        "head": (row // HEAD,),
        "row": (row,),
        "group": (row, column // GROUP),
    }[granularity]


def slow_scale(magnitudes: list[float], scale: Scale) -> float:
    found = max(sum(magnitudes) / len(magnitudes), 1e-5)
    if scale == "absmean":
        return found
    for _ in range(10):
        chosen = [value for value in magnitudes if value > found / 2]
        if chosen:
            found = max(sum(chosen) / len(chosen), 1e-5)
    return found


def slow_scales(weight: Tensor, granularity: str, scale: Scale) -> Tensor:
    """The scale of every weight, float64 of the weight's shape."""
    shared: dict[tuple[int, ...], list[float]] = {}
    values = weight.double().tolist()
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            shared.setdefault(owner(granularity, row, column), []).append(abs(value))
    scales = {key: slow_scale(found, scale) for key, found in shared.items()}
    return torch.tensor(
        [
            [scales[owner(granularity, row, column)] for column in range(len(line))]
            for row, line in enumerate(values)
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", ["absmean", "least_squares"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_scales_and_codes_are_those_of_a_loop_over_weights(
    granularity: str, scale: Scale, dtype: torch.dtype
) -> None:
    # Rows and columns of sizes of their own, so that a scale of the wrong vector shows.
    weight = torch.randn(ROWS, COLUMNS) * torch.logspace(-2, 1, ROWS)[:, None]
    weight = (weight * torch.logspace(0, 1, COLUMNS)).to(dtype)
    codes, found = ternary_codes(weight, scale, vectors_of(granularity))
    assert codes.dtype == torch.int8
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = slow_scales(weight, granularity, scale)
    torch.testing.assert_close(found.double().expand(ROWS, COLUMNS), expected, rtol=1e-6, atol=0)
    ratio = weight.double() / expected
    sure = ((ratio.abs() - 0.5).abs() > 1e-5) & ((ratio.abs() - 1.5).abs() > 1e-5)
    assert sure.double().mean() > 0.99
    assert torch.equal(codes.double()[sure], ratio.round().clamp(-1, 1)[sure])


@pytest.mark.parametrize("scale", ["absmean", "least_squares"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_are_the_codes_times_their_scales_to_the_bit(
    granularity: str, scale: Scale, dtype: torch.dtype
) -> None:
    weight = torch.randn(ROWS, COLUMNS).to(dtype)
    before, vectors = weight.clone(), vectors_of(granularity)
    codes, found = ternary_codes(weight, scale, vectors)
    assert torch.equal(quantize_weight(weight, scale, vectors), (codes * found).to(dtype))
    assert torch.equal(weight, before)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_least_squares_is_never_further_from_the_weights_and_finer_is_nearer(
    granularity: str,
) -> None:
    weight = torch.randn(ROWS, COLUMNS) * torch.logspace(-1, 0, ROWS)[:, None]
    vectors = vectors_of(granularity)
    error = {
        (scale, count): (quantize_weight(weight, scale, count) - weight).square().sum().item()
        for scale in ("absmean", "least_squares")
        for count in (1, vectors)
    }
    assert error["least_squares", vectors] < 0.9 * error["absmean", vectors]
    if vectors > 1:
        assert error["least_squares", vectors] < 0.9 * error["least_squares", 1]


def test_least_squares_does_not_depend_on_the_order_of_the_sum() -> None:
    weight = torch.randn(1, 102_300)
    shuffled = weight[:, torch.randperm(weight.numel())]
    assert torch.equal(
        fitted_scale(weight, "least_squares"), fitted_scale(shuffled, "least_squares")
    )


@pytest.mark.parametrize("scale", ["absmean", "least_squares"])
@pytest.mark.parametrize("vectors", [2, 6])
def test_vectors_of_zeros_have_no_codes_and_leave_others_alone(scale: Scale, vectors: int) -> None:
    weight = torch.randn(2, 96)
    weight[0] = 0.0
    codes, found = ternary_codes(weight, scale, vectors)
    assert not codes[0].any() and codes[1].any()
    assert found[0].max().item() == pytest.approx(1e-5)
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("granularity", "shape", "expected"),
    [
        ("tensor", (63, 100), 1),
        ("row", (63, 100), 63),
        ("head", (63, 100), 9),
        ("group", (63, 192), 189),
    ],
)
def test_the_number_of_scales(granularity: str, shape: tuple[int, int], expected: int) -> None:
    assert vectors_of(granularity, *shape) == expected


@pytest.mark.parametrize(
    ("granularity", "shape", "message"),
    [
        ("group", (63, 100), "100 inputs are no multiple of quantizer.group_size 64"),
        ("head", (64, 100), "64 outputs are no whole number of heads of 7"),
    ],
)
def test_weights_that_scales_do_not_divide_are_refused(
    granularity: str, shape: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        vectors_of(granularity, *shape)
