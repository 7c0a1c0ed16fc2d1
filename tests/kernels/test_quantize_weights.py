from __future__ import annotations

import pytest
import torch

from wrinklefree.kernels.quantize_weights import FittedScale, quantize_weights
from wrinklefree.quant.ternary import ternary_codes


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
