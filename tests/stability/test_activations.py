from __future__ import annotations

import math

import numpy
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from wrinklefree.models.surgery import insert_bitlinear, insert_subln
from wrinklefree.quant.bitlinear import BitLinear, set_quantization_lambda
from wrinklefree.stability import activations
from wrinklefree.stability.activations import ActivationTelemetry, LayerActivations


def by_definition(value: Tensor) -> LayerActivations:
    """Token by token, in float64."""
    peaks, errors, zeroed = [], [], 0
    for token in value.double().flatten(0, -2).numpy():
        step = max(numpy.abs(token).max(), 1e-5) / 127
        kept = numpy.round(token / step) * step
        if token.any():
            peaks.append(numpy.abs(token).max() / math.sqrt((token**2).mean()))
            errors.append(numpy.linalg.norm(kept - token) / numpy.linalg.norm(token))
        else:
            errors.append(0.0)
        zeroed += int(((kept == 0) & (token != 0)).sum())
    return LayerActivations(max(peaks), sum(errors) / len(errors), zeroed / value.numel(), 0.0)


def close(found: LayerActivations, expected: LayerActivations) -> None:
    for name, value in vars(expected).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-4, abs=1e-12), name


@pytest.mark.parametrize("shape", [(1, 7), (5, 63), (2, 9, 33)])
@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_measures_what_int8_loses(shape: tuple[int, ...], strength: float) -> None:
    layer = BitLinear(shape[-1], 4)
    set_quantization_lambda(layer, strength)
    first, second = torch.randn(shape) * 3, torch.randn(shape).exp()
    first[..., 0, :] *= 1e-3
    second.view(-1, shape[-1])[-1] = torch.arange(shape[-1]) == 1
    with ActivationTelemetry(layer) as telemetry:
        layer(first)
        layer(second)
    close(telemetry.layers()[""], by_definition(torch.stack([first, second])))


def test_a_token_of_zeros_loses_nothing() -> None:
    layer, value = BitLinear(5, 2), torch.randn(3, 5)
    value[1] = 0.0
    with ActivationTelemetry(layer) as telemetry:
        layer(value)
    close(telemetry.layers()[""], by_definition(value))


def test_outliers_raise_peak_error_and_what_is_lost() -> None:
    layer, value = BitLinear(63, 4), torch.randn(20, 63)
    found = []
    for outlier in (0.0, 30.0, 1000.0):
        value[:, 5] = outlier
        with ActivationTelemetry(layer) as telemetry:
            layer(value)
        found.append(telemetry.layers()[""])
    assert found[0].peak_over_rms < found[1].peak_over_rms < found[2].peak_over_rms
    assert found[2].peak_over_rms == pytest.approx(math.sqrt(63), rel=1e-3)
    assert found[0].zeroed < 0.02 < 0.5 * found[1].zeroed and found[2].zeroed > 0.98
    assert found[0].quantization_error < found[1].quantization_error


def test_entries_beyond_the_codes_of_a_narrower_quantizer_are_clipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def narrow(value_MN: Tensor) -> tuple[Tensor, Tensor]:
        scale_M1 = torch.full((len(value_MN), 1), 10.0)
        return (value_MN * scale_M1).round().clamp(-128, 127).to(torch.int8), scale_M1

    monkeypatch.setattr(activations, "activation_codes", narrow)
    layer, value = BitLinear(4, 2), torch.tensor([[1.0, 12.6, 12.8, -14.0], [0.0, -12.8, 5.0, 0.3]])
    with ActivationTelemetry(layer) as telemetry:
        layer(value)
    assert telemetry.layers()[""].clipped == 2 / 8


@pytest.fixture
def model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=99, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    insert_subln(model)
    insert_bitlinear(model)
    return model


def test_a_model_is_measured_layer_by_layer_and_computes_the_same(model: LlamaForCausalLM) -> None:
    tokens = torch.randint(99, (3, 11))

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    seen: dict[str, Tensor] = {}
    names = [
        f"model.layers.{number}.{part}"
        for number in range(2)
        for part in (
            "self_attn.q_proj",
            "self_attn.o_proj.linear",
            "mlp.gate_proj",
            "mlp.down_proj.linear",
        )
    ]
    plain = gradients()
    hooks = [
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0]})
        )
        for name, module in model.named_modules()
        if isinstance(module, BitLinear)
    ]
    with ActivationTelemetry(model) as telemetry:
        assert all(map(torch.equal, gradients(), plain))
    for hook in hooks:
        hook.remove()
    layers = telemetry.layers()
    assert set(layers) == set(names)
    for name, layer in layers.items():
        close(layer, by_definition(seen[name].detach()))
    metrics = telemetry.metrics()
    assert len(metrics) == 4 * (2 + 8)
    for field in ("peak_over_rms", "quantization_error", "zeroed", "clipped"):
        values = {name: getattr(layer, field) for name, layer in layers.items()}
        assert metrics[f"activation/{field}"] == pytest.approx(sum(values.values()) / 8)
        assert metrics[f"activation/{field}_worst"] == max(values.values())
        for name, value in values.items():
            assert metrics[f"activation/{field}/{name}"] == value
    assert metrics["activation/clipped_worst"] == 0.0 < metrics["activation/zeroed"] < 0.1


def test_nothing_is_measured_after_the_block_even_if_it_fails() -> None:
    layer = BitLinear(4, 2)
    with pytest.raises(RuntimeError), ActivationTelemetry(layer) as telemetry:
        layer(torch.ones(2, 4))
        layer(torch.ones(2, 3))
    before = telemetry.layers()
    layer(torch.randn(2, 4))
    assert telemetry.layers() == before
    assert not layer._forward_pre_hooks


def test_a_model_without_ternary_layers_has_no_metrics() -> None:
    with ActivationTelemetry(nn.Linear(2, 2)) as telemetry:
        pass
    assert telemetry.metrics() == {}
