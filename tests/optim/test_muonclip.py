from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.models.layers import decoder_layers
from wrinklefree.optim.attention_logits import AttentionLogitRecorder
from wrinklefree.optim.build import build_optimizer
from wrinklefree.optim.muonclip import QkClip, QkClipStats, build_muonclip, shrink_queries
from wrinklefree.optim.settings import MuonClipSettings, MuonSettings, OptimizerSettings

Build = Callable[..., PreTrainedModel]
KINDS = [("llama", False), ("llama", True), ("qwen3", False), ("qwen3", True)]
SETTINGS = {"lr": 8e-4, "adamw_lr": 3e-4, "scale": "match_rms"}


def measure(model: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    """Largest logits [L, H] of the weights as they are."""
    recorder = AttentionLogitRecorder(model)
    model(input_ids=tokens_BT, use_cache=False)
    maxima = torch.stack(recorder.maxima_H())
    recorder.reset()
    return maxima


@pytest.mark.parametrize(("family", "bits"), KINDS)
@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_measured_again_no_logit_is_over_the_threshold(
    build_model: Build, tokens_BT: Tensor, family: str, bits: bool, strength: float
) -> None:
    model = build_model(family, bits=bits)
    for layer in decoder_layers(model):
        layer.self_attn.q_proj.quantization_lambda = strength
    before_LH = measure(model, tokens_BT)
    # The input of the second layer depends on the first: clip them one at a time.
    for index, layer in enumerate(decoder_layers(model)):
        now_H = measure(model, tokens_BT)[index]
        threshold = 0.6 * now_H.max().item()
        gamma_H = (threshold / now_H).clamp(0.0, 1.0).where(now_H > threshold, 1.0)
        shrink_queries(layer.self_attn, gamma_H)
        after_H = measure(model, tokens_BT)[index]
        assert after_H.max().item() == pytest.approx(threshold, rel=1e-4)
    assert before_LH.max() > threshold


def test_a_dense_layer_clips_guilty_heads_only_and_leaves_keys_alone(
    build_model: Build, tokens_BT: Tensor
) -> None:
    model = build_model()
    attention = decoder_layers(model)[0].self_attn
    before_H = measure(model, tokens_BT)[0]
    keys = attention.k_proj.weight.detach().clone()
    gamma_H = torch.tensor([1.0, 0.25, 1.0, 1.0, 0.7, 1.0])
    shrink_queries(attention, gamma_H)
    torch.testing.assert_close(measure(model, tokens_BT)[0], before_H * gamma_H)
    assert torch.equal(attention.k_proj.weight, keys)


def test_scaling_rows_of_a_ternary_projection_would_not_be_exact(
    build_model: Build, tokens_BT: Tensor
) -> None:
    model = build_model(bits=True)
    attention = decoder_layers(model)[0].self_attn
    before_H = measure(model, tokens_BT)[0]
    with torch.no_grad():
        attention.q_proj.weight[:8] *= 0.25
        attention.q_proj.bias[:8] *= 0.25
    after_H = measure(model, tokens_BT)[0]
    assert after_H[0] > 0.3 * before_H[0]
    assert ((after_H[1:] - before_H[1:]).abs() > 1e-3 * before_H[1:].abs()).any()


@pytest.mark.parametrize(("family", "bits"), KINDS)
def test_the_clip_acts_on_what_was_measured_since_the_last_one(
    build_model: Build, tokens_BT: Tensor, family: str, bits: bool
) -> None:
    model = build_model(family, bits=bits)
    largest = measure(model, tokens_BT)
    threshold = float(largest.flatten().sort().values[-3:].mean())
    clip = QkClip(model, threshold)
    model(input_ids=tokens_BT, use_cache=False)
    clip()
    assert clip.last == QkClipStats(largest.max().item(), int((largest > threshold).sum()))
    assert 0 < clip.last.clipped_heads < largest.numel()
    with pytest.raises(RuntimeError, match="since the last step"):
        clip()
    over = largest[0].max() > threshold
    first = measure(model, tokens_BT)[0]
    assert first.max().item() <= threshold * (1 + 1e-4)
    assert torch.equal(first, largest[0]) == (not over)


def test_logits_under_the_threshold_leave_the_weights_bit_identical(
    build_model: Build, tokens_BT: Tensor
) -> None:
    model = build_model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    clip = QkClip(model, threshold=1e3)
    model(input_ids=tokens_BT, use_cache=False)
    clip()
    assert all(map(torch.equal, model.parameters(), before))
    assert clip.last is not None and clip.last.clipped_heads == 0


@pytest.mark.parametrize(("family", "bits"), KINDS)
def test_training_keeps_growing_logits_near_the_threshold(
    build_model: Build, tokens_BT: Tensor, family: str, bits: bool
) -> None:
    def largest_after_training(threshold: float) -> float:
        model = build_model(family, bits=bits)
        settings = MuonClipSettings(**SETTINGS, qk_clip_threshold=threshold)
        optimizer = build_muonclip(model, settings)
        for _ in range(12):
            # A loss that asks for large logits: attention of the last token to the first.
            hidden = model(input_ids=tokens_BT, use_cache=False).logits
            loss = -hidden.square().mean()
            for layer in decoder_layers(model):
                loss = loss - (layer.self_attn.q_proj.bias * 0.1).sum()
                gain = getattr(layer.self_attn, "q_norm", layer.self_attn.q_proj).weight
                loss = loss - gain.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = 0.02
            optimizer.param_groups[1]["lr"] = 0.02
            optimizer.step()
        return measure(model, tokens_BT).max().item()

    start = measure(build_model(family, bits=bits), tokens_BT).max().item()
    free = largest_after_training(1e6)
    clipped = largest_after_training(start)
    assert free > 1.3 * start
    # One step of growth is not yet in the measurement that the clip acts on.
    assert clipped < start + 0.4 * (free - start)


def test_without_clipping_it_is_muon_without_nesterov(
    build_model: Build, tokens_BT: Tensor
) -> None:
    shared = {"lr": 8e-4, "adamw_lr": 3e-4, "scale": "match_rms", "weight_decay": 0.1}
    results = []
    clip = MuonClipSettings(qk_clip_threshold=1e6, **shared)
    muon = MuonSettings(nesterov=False, **shared)
    for name in ("muonclip", "muon"):
        model = build_model()
        settings = OptimizerSettings(name=name, muon=muon, muonclip=clip)
        optimizer = build_optimizer(model, settings)
        for _ in range(3):
            optimizer.zero_grad()
            model(input_ids=tokens_BT, labels=tokens_BT, use_cache=False).loss.backward()
            optimizer.step()
        results.append(list(model.parameters()))
    assert all(map(torch.equal, *results))


def test_a_step_without_a_forward_pass_is_an_error(build_model: Build) -> None:
    model = build_model()
    optimizer = build_muonclip(model, MuonClipSettings(**SETTINGS))
    with pytest.raises(RuntimeError, match="no attention logits"):
        optimizer.step()
