from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from wrinklefree.mixture.batch import Batch
from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.calibration import Gain, GainStatistics, calibrate_subln
from wrinklefree.models.forward import next_token_logits
from wrinklefree.models.layers import decoder_layers
from wrinklefree.models.losses import mean_next_token_loss
from wrinklefree.models.surgery import (
    insert_bitlinear,
    insert_subln,
    subln_modules,
)
from wrinklefree.quant.bitlinear import BitLinear, set_quantization_lambda

Tiny = Callable[..., PreTrainedModel]
MakeBatch = Callable[..., Batch]


def test_gains_solve_least_squares() -> None:
    x = torch.randn(57, 7, dtype=torch.float64) * torch.rand(57, 1, dtype=torch.float64)
    statistics = GainStatistics.zeros(7, x.device)
    for part in x.split(20):
        statistics.add(part, 1e-5)
    h = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    per_channel = torch.stack(
        [torch.linalg.lstsq(h[:, [c]], x[:, [c]]).solution[0, 0] for c in range(7)]
    )
    scalar = torch.linalg.lstsq(h.reshape(-1, 1), x.reshape(-1, 1)).solution[0, 0]
    torch.testing.assert_close(statistics.gain("calibrated"), per_channel)
    torch.testing.assert_close(statistics.gain("calibrated_scalar"), scalar.expand(7))
    assert torch.equal(statistics.gain("ones"), torch.ones(7, dtype=torch.float64))
    error = (x - per_channel * h).norm() / x.norm()
    assert statistics.relative_error(per_channel) == pytest.approx(error.item())


def test_a_channel_that_is_always_zero_gets_the_scalar_gain() -> None:
    x = torch.randn(57, 7, dtype=torch.float64)
    x[:, 3] = 0.0
    statistics = GainStatistics.zeros(7, x.device)
    statistics.add(x, 1e-5)
    assert statistics.gain("calibrated")[3] == statistics.gain("calibrated_scalar")[3]
    nothing = GainStatistics.zeros(7, x.device)
    assert torch.equal(nothing.gain("calibrated"), torch.ones(7, dtype=torch.float64))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_every_norm_is_fitted_to_what_reaches_it_without_quantization_or_padding(
    tiny: Tiny, batch: MakeBatch, family: str
) -> None:
    model, batches = tiny(family), [batch(rows=2), batch(rows=3)]
    insert_subln(model)
    insert_bitlinear(model)
    telemetry = calibrate_subln(model, batches, "calibrated")
    ternary = [module for module in model.modules() if isinstance(module, BitLinear)]
    assert {layer.quantization_lambda for layer in ternary} == {1.0}

    set_quantization_lambda(model, 0.0)
    modules = [m for layer in decoder_layers(model) for m in subln_modules(layer).values()]
    seen: dict[int, list[torch.Tensor]] = {index: [] for index in range(len(modules))}
    for index, module in enumerate(modules):
        module.register_forward_pre_hook(
            lambda _, arguments, index=index: seen[index].append(arguments[0])
        )
    for item in batches:
        with torch.no_grad():
            next_token_logits(
                model,
                item.tokens_BT,
                item.positions_BT,
                causal_document_mask(item.document_ids_BT),
            )
    for index, module in enumerate(modules):
        x = torch.cat(
            [
                value[item.document_ids_BT >= 0]
                for value, item in zip(seen[index], batches, strict=True)
            ]
        ).double()
        h = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        expected = (x * h).sum(0) / h.square().sum(0)
        torch.testing.assert_close(module.norm.weight.double(), expected, rtol=1e-4, atol=1e-6)
        assert telemetry[index]["gain_max"] == pytest.approx(expected.max().item(), rel=1e-4)
    assert [(entry["layer"], entry["module"]) for entry in telemetry] == [
        (layer, name) for layer in (0, 1) for name in ("self_attn.o_proj", "mlp.down_proj")
    ]


@pytest.mark.parametrize("gain", ["calibrated", "calibrated_scalar"])
def test_calibrated_gains_change_the_function_less_than_unit_gains(
    tiny: Tiny, batch: MakeBatch, gain: Gain
) -> None:
    model, batches = tiny(num_hidden_layers=3), [batch(rows=8)]
    packed = batches[0]
    inputs = (packed.tokens_BT, packed.positions_BT, causal_document_mask(packed.document_ids_BT))
    with torch.no_grad():
        before = next_token_logits(model, *inputs)
        insert_subln(model)
        ones = (next_token_logits(model, *inputs) - before).norm().item()
        calibrate_subln(model, batches, gain)
        assert (next_token_logits(model, *inputs) - before).norm().item() < 0.8 * ones


def test_loss_counts_tokens_that_follow_another_of_their_document(
    tiny: Tiny, batch: MakeBatch
) -> None:
    model, batches = tiny().double(), [batch(rows=2), batch(rows=3)]
    total, count = 0.0, 0
    for item in batches:
        for row in range(item.tokens_BT.shape[0]):
            for document in (0, 1):
                tokens = item.tokens_BT[row][item.document_ids_BT[row] == document]
                with torch.no_grad():
                    log_probabilities = model(input_ids=tokens[None]).logits[0].log_softmax(-1)
                total -= log_probabilities[:-1].gather(1, tokens[1:, None]).sum().item()
                count += len(tokens) - 1
    assert mean_next_token_loss(model, batches, 1.0) == pytest.approx(total / count, rel=1e-5)


def test_loss_is_taken_at_the_strength_asked_for(tiny: Tiny, batch: MakeBatch) -> None:
    model, batches = tiny(), [batch()]
    dense = mean_next_token_loss(model, batches, 0.0)
    insert_bitlinear(model)
    assert mean_next_token_loss(model, batches, 0.0) == dense
    assert mean_next_token_loss(model, batches, 1.0) != dense
