from __future__ import annotations

import pytest
import torch

from wrinklefree.kernels.packed_matmul import packed_matmul
from wrinklefree.kernels.ternary_matmul import ternary_matmul
from wrinklefree.quant.packing import pack_ternary


@pytest.mark.parametrize("per_output", [False, True])
@pytest.mark.parametrize("tokens", [1, 5])
def test_products_are_exact_integers_times_the_scales(tokens: int, per_output: bool) -> None:
    codes = torch.randint(-128, 128, (tokens, 63), dtype=torch.int8)
    weight = torch.randint(-1, 2, (36, 63), dtype=torch.int8)
    scale = torch.rand(tokens, 1) + 1
    weight_scale = torch.rand((36, 1) if per_output else ()) + 1
    result = ternary_matmul(codes, scale, weight, weight_scale)
    sums = codes.to(torch.int64) @ weight.to(torch.int64).T
    expected = sums.double() / scale.double() * weight_scale.double().reshape(1, -1)
    torch.testing.assert_close(result.double(), expected, rtol=3e-7, atol=0)
    packed = pack_ternary(weight)
    assert torch.equal(packed_matmul(codes, scale, packed, weight_scale), result)
    halves = packed_matmul(codes, scale, packed, weight_scale, torch.bfloat16)
    assert torch.equal(halves, result.bfloat16())
