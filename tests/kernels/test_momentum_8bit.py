from __future__ import annotations

import pytest
import torch

from wrinklefree.kernels.momentum_8bit.reference import (
    BLOCK,
    Map,
    dequantize_blocks,
    dynamic_values,
    quantize_blocks,
    zero_blocks,
)

MAPS: list[Map] = ["linear", "dynamic", "dynamic_unsigned"]
SHAPES = [(1,), (7, 5), (63, 65), (3, 1000, 2)]


def numbers_of(kind: Map) -> list[float]:
    """The map in the words of its papers, as a list."""
    if kind == "linear":
        return [code / 127 for code in range(-127, 128)]
    values = [0.0, 1.0]
    for decade in range(7):
        parts = 2**decade * (1 if kind == "dynamic" else 2)
        width = 0.9 / parts
        middles = [(0.1 + width * (part + 0.5)) * 10.0 ** (decade - 6) for part in range(parts)]
        values += middles + ([-middle for middle in middles] if kind == "dynamic" else [])
    return sorted(values)


def draw(kind: Map, shape: tuple[int, ...]) -> torch.Tensor:
    """Numbers over many magnitudes."""
    tensor = torch.randn(shape) * 10.0 ** torch.empty(shape).uniform_(-8, 2)
    return tensor.abs() if kind == "dynamic_unsigned" else tensor


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_number_becomes_the_nearest_of_its_block(kind: Map, shape: tuple[int, ...]) -> None:
    tensor = draw(kind, shape)
    codes, scales = quantize_blocks(tensor, kind)
    assert codes.shape == shape and codes.dtype.itemsize == 1
    result = dequantize_blocks(codes, scales, kind)
    values = torch.tensor(numbers_of(kind), dtype=torch.float64)
    if kind == "dynamic_unsigned":
        values = values[1:]
    blocks = tensor.flatten().double().split(BLOCK)
    assert len(scales) == len(blocks)
    for block, found in zip(blocks, result.flatten().double().split(BLOCK), strict=True):
        grid = values * block.abs().max()
        nearest = (block[:, None] - grid).abs().min(dim=1).values
        rounding = 1e-6 * block.abs().max()
        assert ((block - found).abs() <= nearest + rounding).all()


def test_the_dynamic_maps_have_256_numbers_and_those_of_the_paper() -> None:
    for signed, kind in ((True, "dynamic"), (False, "dynamic_unsigned")):
        values = dynamic_values(signed)
        assert len(values) == 256 and values[-1] == 1.0
        torch.testing.assert_close(values, torch.tensor(numbers_of(kind)))
    # The largest but one, and the smallest above zero, as published for eight bits.
    assert dynamic_values(True)[-2].item() == pytest.approx(0.99296875)
    assert dynamic_values(True)[128].item() == pytest.approx(5.5e-7)
    assert dynamic_values(False)[1].item() == pytest.approx(3.25e-7)


@pytest.mark.parametrize("kind", ["dynamic", "dynamic_unsigned"])
def test_codes_are_those_of_a_search_also_next_to_the_middles(kind: Map) -> None:
    values = dynamic_values(kind == "dynamic")
    middles = (values[:-1] + values[1:]) / 2
    edges = [torch.nextafter(middles, torch.tensor(side)) for side in (-2.0, 2.0)]
    drawn = torch.cat([draw(kind, (20_000,)).clamp(-1, 1), torch.rand(20_000)])
    whole = torch.cat([drawn, middles, *edges, values, torch.zeros(1)])
    if kind == "dynamic_unsigned":
        whole = whole.abs()
    for start in range(0, len(whole), BLOCK - 1):  # each with a 1, so that shares are the numbers
        shares = torch.cat([torch.ones(1), whole[start : start + BLOCK - 1]])
        expected = torch.bucketize(shares, middles).clamp(min=int(kind != "dynamic"))
        assert torch.equal(quantize_blocks(shares, kind)[0].long(), expected)


def test_the_dynamic_map_keeps_small_numbers_that_the_linear_one_loses() -> None:
    tensor = torch.cat([torch.ones(1), torch.full((100,), 1e-3)])
    kept = {kind: dequantize_blocks(*quantize_blocks(tensor, kind), kind) for kind in MAPS}
    assert not kept["linear"][1:].any()
    torch.testing.assert_close(kept["dynamic"], tensor, rtol=0.06, atol=0)


@pytest.mark.parametrize("kind", MAPS)
def test_zeros_are_zeros_and_one_block_does_not_touch_another(kind: Map) -> None:
    codes, scales = zero_blocks(torch.ones(3, 1000), kind)
    assert not dequantize_blocks(codes, scales, kind).any()
    tensor = torch.zeros(2 * BLOCK)
    tensor[0], tensor[BLOCK:] = 1e6, draw(kind, (BLOCK,))
    result = dequantize_blocks(*quantize_blocks(tensor, kind), kind)
    alone = dequantize_blocks(*quantize_blocks(tensor[BLOCK:], kind), kind)
    assert torch.equal(result[BLOCK:], alone)
    assert kind == "dynamic_unsigned" or not result[1:BLOCK].any()


def test_a_mean_square_is_never_rounded_to_zero() -> None:
    tensor = torch.tensor([1.0, 1e-12])
    result = dequantize_blocks(*quantize_blocks(tensor, "dynamic_unsigned"), "dynamic_unsigned")
    assert result[1].item() == pytest.approx(3.25e-7)
