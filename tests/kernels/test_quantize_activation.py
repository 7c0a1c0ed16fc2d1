from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.kernels.quantize_activation import quantize_activation


@given(seed=st.integers(0, 2**31), tokens=st.integers(1, 9), features=st.integers(1, 100))
@settings(max_examples=25, deadline=None)
def test_codes_are_rounded_multiples_of_the_largest_magnitude_of_the_token(
    seed: int, tokens: int, features: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    activation = torch.randn(tokens, features, generator=generator, dtype=torch.float64)
    codes, scale = quantize_activation(activation)
    assert codes.dtype == torch.int8
    assert scale.shape == (tokens, 1)
    lists = (tensor.tolist() for tensor in (activation, codes, scale))
    for row, row_codes, row_scale in zip(*lists, strict=True):
        largest = max(abs(value) for value in row)
        assert row_scale[0] == pytest.approx(127 / largest)
        assert row_codes == [round(value * row_scale[0]) for value in row]


def test_ties_round_to_even() -> None:
    activation = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 127.0]])
    codes, scale = quantize_activation(activation)
    assert scale.item() == 1.0
    assert codes.tolist() == [[0, 2, 2, 0, -2, -2, 126, 127]]


def test_a_token_does_not_depend_on_the_others() -> None:
    activation = torch.randn(7, 63)
    codes, scale = quantize_activation(activation)
    louder = torch.cat([activation[:3], 100 * activation[3:]])
    codes_beside_louder, scale_beside_louder = quantize_activation(louder)
    assert torch.equal(codes[:3], codes_beside_louder[:3])
    assert torch.equal(scale[:3], scale_beside_louder[:3])


def test_zero_token_has_zero_codes_and_a_finite_scale() -> None:
    codes, scale = quantize_activation(torch.zeros(3, 63))
    assert not codes.any()
    assert torch.isfinite(scale).all()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # raised by torch itself
def test_codes_and_scales_are_those_of_transformers() -> None:
    from transformers.integrations.bitnet import BitLinear

    activation = torch.randn(63, 100)
    with torch.compiler.set_stance("force_eager"):
        expected_codes, expected_scale = BitLinear(100, 4, bias=False).activation_quant(activation)
    codes, scale = quantize_activation(activation)
    assert torch.equal(codes, expected_codes)
    assert torch.equal(scale, expected_scale)


@pytest.mark.parametrize("shape", [(3, 701, 100), (1, 2**17), (70_001, 1)])
def test_what_is_quantized_block_by_block_is_what_each_token_gets_alone(
    shape: tuple[int, ...],
) -> None:
    activation = torch.randn(shape)
    codes, scale = quantize_activation(activation)
    alone, own = quantize_activation(activation[..., -1:, :])
    assert codes.shape == shape
    assert scale.shape == (*shape[:-1], 1)
    assert torch.equal(codes[..., -1:, :], alone)
    assert torch.equal(scale[..., -1:, :], own)
    expected = 127 * activation.abs().amax(-1, keepdim=True).clamp(min=1e-5).reciprocal()
    assert torch.equal(scale, expected)
    assert torch.equal(codes, (activation * expected).round().to(torch.int8))
