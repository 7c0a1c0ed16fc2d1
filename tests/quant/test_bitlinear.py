from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from wrinklefree.kernels.ternary_linear import reference
from wrinklefree.kernels.ternary_linear.products import PRODUCTS, VARIABLE
from wrinklefree.quant import bitlinear
from wrinklefree.quant.bitlinear import (
    BitLinear,
    quantization_lambda_of,
    set_quantization_lambda,
)
from wrinklefree.quant.codes import activation_codes
from wrinklefree.quant.settings import QuantizerSettings


def ternary(weight: Tensor) -> Tensor:
    scale = weight.abs().mean().clamp(min=1e-5)
    return (weight / scale).round().clamp(-1, 1) * scale


def int8(activation: Tensor) -> Tensor:
    scale = 127 / activation.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    return (activation * scale).round().clamp(-128, 127) / scale


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("bias", [False, True])
def test_output_and_gradients_are_those_of_the_closed_form(strength: float, bias: bool) -> None:
    layer = BitLinear(63, 100, bias=bias).double()
    layer.quantization_lambda = strength
    x = torch.randn(2, 5, 63, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(2, 5, 100, dtype=torch.float64)
    output = layer(x)
    output.backward(gradient)

    seen_x = x.detach() + strength * (int8(x.detach()) - x.detach())
    weight = layer.weight.detach()
    seen_weight = weight + strength * (ternary(weight) - weight)
    expected = seen_x @ seen_weight.T + (layer.bias.detach() if layer.bias is not None else 0.0)
    torch.testing.assert_close(output.detach(), expected)
    torch.testing.assert_close(x.grad, gradient @ seen_weight)
    torch.testing.assert_close(layer.weight.grad, torch.einsum("bto,bti->oi", gradient, seen_x))
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad, gradient.sum((0, 1)))


EXACT = [
    QuantizerSettings(scale=scale, granularity=granularity)
    for scale in ("absmean", "least_squares")
    for granularity in ("tensor", "head", "row")
]


@pytest.mark.parametrize("quantizer", EXACT, ids=lambda q: f"{q.scale}-{q.granularity}")
@pytest.mark.parametrize("bias", [False, True])
def test_full_strength_is_the_exact_product_of_codes_on_every_back_end(
    quantizer: QuantizerSettings, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = BitLinear(63, 100, bias, quantizer, head_size=20)
    x = torch.randn(2, 5, 63)
    codes_of_x, codes_of_weight = activation_codes(x), layer.ternary_codes()
    expected = reference.ternary_linear(*codes_of_x, *codes_of_weight)
    if layer.bias is not None:
        expected = expected + layer.bias
    for back_end in PRODUCTS:
        monkeypatch.setenv(VARIABLE, back_end)
        assert torch.equal(layer(x), expected)
        with torch.no_grad():
            assert torch.equal(layer(x), expected)
    # The product of floats rounds each value and each sum; the exact one is at least as near.
    x_64, weight_64 = (
        (codes_of_x[0] / codes_of_x[1].double()),
        (codes_of_weight[0] * codes_of_weight[1].double()),
    )
    truth = F.linear(x_64, weight_64, None if layer.bias is None else layer.bias.double())
    floats = F.linear(x_64.float(), weight_64.float(), layer.bias)
    assert (layer(x) - truth).norm() <= 1.5 * (floats - truth).norm()


@pytest.mark.parametrize("quantizer", EXACT[::2], ids=lambda q: f"{q.scale}-{q.granularity}")
def test_a_compiled_layer_is_one_graph_with_the_same_bits(quantizer: QuantizerSettings) -> None:
    layer = BitLinear(63, 100, quantizer=quantizer, head_size=20)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for run in (layer, compiled):
        x = torch.linspace(-1, 1, 5 * 63).reshape(5, 63).sin().requires_grad_()
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = run(x)
        output.float().square().sum().backward()
        results.append([output, x.grad, layer.weight.grad])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("scale", ["absmean", "least_squares", "learned"])
def test_a_compiled_layer_computes_the_same_in_one_program_for_all_strengths(
    scale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = BitLinear(63, 100, quantizer=QuantizerSettings.model_validate({"scale": scale}))
    layer.double()
    x = torch.randn(2, 5, 63, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(2, 5, 100, dtype=torch.float64)
    inputs = [x, *layer.parameters()]
    found = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        for strength in (0.3, 0.7):
            layer.quantization_lambda = strength
            output = layer(x)
            found.append([output, *torch.autograd.grad(output, inputs, gradient)])
    for plain, compiled in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(plain, compiled)


@pytest.mark.filterwarnings("ignore:.*Function'> should not be inst:DeprecationWarning")
@pytest.mark.parametrize("scale", ["absmean", "least_squares", "learned"])
@pytest.mark.parametrize("granularity", ["tensor", "group"])
def test_a_compiled_layer_below_full_strength_is_one_graph(scale: str, granularity: str) -> None:
    torch._dynamo.reset()  # programs of other tests count towards its limit
    settings = {"scale": scale, "granularity": granularity}
    layer = BitLinear(384, 300, quantizer=QuantizerSettings.model_validate(settings))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for strength in (0.3, 0.7):
        layer.quantization_lambda = strength
        x = torch.randn(5, 384)
        torch.testing.assert_close(compiled(x), layer(x))
    assert counter.frame_count == 1


def test_zero_strength_quantizes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(value: Tensor) -> Tensor:
        raise AssertionError("quantized")

    monkeypatch.setattr(bitlinear, "quantize_weight", refuse)
    monkeypatch.setattr(bitlinear, "quantize_activation", refuse)
    monkeypatch.setattr(bitlinear, "activation_codes", refuse)
    layer, x = BitLinear(63, 100), torch.randn(5, 63)
    layer.quantization_lambda = 0.0
    assert torch.equal(layer(x), F.linear(x, layer.weight))


@pytest.mark.parametrize("bias", [False, True])
def test_bfloat16_autocast_keeps_parameters_and_their_gradients_in_float32(bias: bool) -> None:
    layer, x = BitLinear(64, 100, bias=bias), torch.randn(5, 64)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(layer(x)[..., :64])
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


def test_takes_over_the_parameters_of_a_linear_layer() -> None:
    linear = nn.Linear(63, 100, bias=True)
    layer = BitLinear.from_linear(linear)
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_strength_is_set_everywhere_and_restored() -> None:
    model = nn.Sequential(BitLinear(8, 8), nn.Sequential(BitLinear(8, 8), nn.Linear(8, 8)))
    x = torch.randn(5, 8)
    quantized = model(x)
    set_quantization_lambda(model, 0.25)
    assert not torch.equal(model(x), quantized)
    with pytest.raises(KeyError), quantization_lambda_of(model, 1.0):
        assert torch.equal(model(x), quantized)
        raise KeyError
    layers = [module for module in model.modules() if isinstance(module, BitLinear)]
    assert [layer.quantization_lambda for layer in layers] == [0.25, 0.25]


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_strength_outside_of_its_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="expected 0 to 1"):
        set_quantization_lambda(BitLinear(8, 8), value)


QUANTIZERS = [
    QuantizerSettings(scale=scale, granularity=granularity, group_size=64)
    for scale in ("absmean", "least_squares", "learned")
    for granularity in ("tensor", "head", "row", "group")
]
EACH = pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: f"{q.scale}-{q.granularity}")


@EACH
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_every_quantizer_is_blended_in_and_gradients_are_straight_through(
    quantizer: QuantizerSettings, strength: float
) -> None:
    layer = BitLinear(128, 64, quantizer=quantizer, head_size=16).double()
    layer.quantization_lambda = strength
    x = torch.randn(5, 128, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(5, 64, dtype=torch.float64)
    output = layer(x)
    output.backward(gradient)

    codes, scale = layer.ternary_codes()
    weight = layer.weight.detach()
    seen_x = x.detach() + strength * (int8(x.detach()) - x.detach())
    seen_weight = weight + strength * (codes * scale - weight)
    torch.testing.assert_close(output.detach(), seen_x @ seen_weight.T)
    torch.testing.assert_close(x.grad, gradient @ seen_weight)
    expected = gradient.T @ seen_x
    if quantizer.scale == "learned":
        clipped = (weight / (1.5 * scale)).abs() >= 0.99
        expected = torch.where(clipped, (1 - strength) * expected, expected)
        assert layer.alpha is not None and layer.alpha.ndim == 1 and layer.alpha.grad is not None
        assert bool(layer.alpha.grad.any()) == (strength > 0)
    torch.testing.assert_close(layer.weight.grad, expected)


def test_every_quantizer_gives_another_product_and_says_which_it_is() -> None:
    linear, x = nn.Linear(128, 64, bias=False), torch.randn(5, 128)
    layers = [BitLinear.from_linear(linear, quantizer, 16) for quantizer in QUANTIZERS]
    fixed = [layer(x) for layer in layers if layer.scale != "learned"]
    assert all(not torch.equal(a, b) for i, a in enumerate(fixed) for b in fixed[:i])
    other_size = QuantizerSettings(granularity="group", group_size=128)
    assert not torch.equal(BitLinear.from_linear(linear, other_size)(x), fixed[3])
    for layer, quantizer in zip(layers, QUANTIZERS, strict=True):
        assert (layer.scale, layer.granularity) == (quantizer.scale, quantizer.granularity)
        assert ("alpha" in layer.state_dict()) == (quantizer.scale == "learned")
