"""A stack of ternary layers against its layers one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from wrinklefree.kernels.ternary_linear import reference
from wrinklefree.quant.bitlinear import BitLinear
from wrinklefree.quant.bitlinear_stack import BitLinearStack, LinearStack
from wrinklefree.quant.codes import activation_codes
from wrinklefree.quant.routing import Routing
from wrinklefree.quant.settings import QuantizerSettings

QUANTIZERS = [
    QuantizerSettings(scale=scale, granularity=granularity, group_size=64)
    for scale in ("absmean", "least_squares", "learned")
    for granularity in ("tensor", "row", "group")
]
TAKEN_MK = torch.tensor([[0, 3], [3, 1], [3, 0], [1, 3], [0, 1], [3, 0], [0, 3]])
"""Layer 2 of 4 has no token."""


def single(weight_ON: Tensor, quantizer: QuantizerSettings, strength: float) -> BitLinear:
    linear = nn.Linear(weight_ON.shape[1], len(weight_ON), bias=False, dtype=weight_ON.dtype)
    linear.weight = nn.Parameter(weight_ON.detach().clone())
    layer = BitLinear.from_linear(linear, quantizer)
    layer.quantization_lambda = strength
    return layer


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: f"{q.scale}-{q.granularity}")
@pytest.mark.parametrize("fused", [1, 2])
def test_each_matrix_computes_and_learns_what_a_layer_of_its_own_does(
    fused: int, quantizer: QuantizerSettings, strength: float
) -> None:
    weight = torch.randn(4, 6, 128, dtype=torch.float64) * torch.rand(4, 6, 1).double()
    stack = BitLinearStack(LinearStack(nn.Parameter(weight.clone())), quantizer, fused)
    stack.quantization_lambda = strength
    routing = Routing.of(TAKEN_MK, 4)
    given = torch.randn(7, 128, dtype=torch.float64, requires_grad=True)
    output = stack(given[routing.token_P], routing)[routing.place_MK]
    assert output.shape == (7, 2, 6)
    gradient = torch.randn_like(output)
    output.backward(gradient)

    alone = given.detach().clone().requires_grad_()
    layers = [[single(part, quantizer, strength) for part in one.chunk(fused)] for one in weight]
    rows = [
        torch.stack([torch.cat([layer(token[None])[0] for layer in layers[e]]) for e in taken])
        for token, taken in zip(alone, TAKEN_MK.tolist(), strict=True)
    ]
    expected = torch.stack(rows)
    expected.backward(gradient)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(given.grad, alone.grad)
    grads = [torch.cat([_gradient(layer.weight) for layer in one]) for one in layers]
    torch.testing.assert_close(_gradient(stack.weight), torch.stack(grads))
    if stack.alpha is not None:
        each = [_gradient(layer.alpha) for one in layers for layer in one]
        torch.testing.assert_close(_gradient(stack.alpha), torch.cat(each))


def _gradient(parameter: nn.Parameter | None) -> Tensor:
    assert parameter is not None
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def test_full_strength_is_the_exact_product_of_codes() -> None:
    stack = BitLinearStack(LinearStack(nn.Parameter(torch.randn(4, 6, 63))), fused=2)
    routing = Routing.of(TAKEN_MK, 4)
    given = torch.randn(7, 63)[routing.token_P]
    codes, scales = stack.ternary_codes()
    assert codes.shape == (24, 63) and scales.shape == (24, 1)
    parts = [tensor.split(routing.sizes) for tensor in activation_codes(given)]
    matrices = (codes.split(6), scales.split(6))
    exact = [reference.ternary_linear(*one) for one in zip(*parts, *matrices, strict=True)]
    assert torch.equal(stack(given, routing), torch.cat(exact))


def test_experts_compute_in_the_type_of_an_open_autocast() -> None:
    stack = BitLinearStack(LinearStack(nn.Parameter(torch.randn(4, 6, 63))), fused=2)
    routing = Routing.of(TAKEN_MK, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert stack(torch.randn(7, 63)[routing.token_P], routing).dtype == torch.bfloat16


def test_rows_come_in_the_order_of_layers_and_go_back_to_their_tokens() -> None:
    routing = Routing.of(TAKEN_MK, 4)
    assert routing.sizes == [5, 3, 0, 6]
    assert routing.layer_P.tolist() == [0] * 5 + [1] * 3 + [3] * 6
    assert routing.token_P.tolist() == [0, 2, 4, 5, 6, 1, 3, 4, 0, 1, 2, 3, 5, 6]
    assert torch.equal(routing.layer_P[routing.place_MK], TAKEN_MK)
    assert torch.equal(routing.token_P[routing.place_MK], torch.arange(7)[:, None].expand(7, 2))
