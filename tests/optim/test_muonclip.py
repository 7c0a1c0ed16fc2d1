from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)

from wrinklefree.errors import UserError
from wrinklefree.models.attention import BY_BLOCKS
from wrinklefree.models.layers import decoder_layers
from wrinklefree.optim.attention_logits import AttentionLogitRecorder
from wrinklefree.optim.build import build_optimizer
from wrinklefree.optim.muonclip import QkClip, build_muonclip, shrink_queries
from wrinklefree.optim.settings import MuonClipSettings, MuonSettings, OptimizerSettings
from wrinklefree.quant.bitlinear import BitLinear
from wrinklefree.quant.settings import QuantizerSettings
from wrinklefree.quant.ternary import quantize_weight
from wrinklefree.train.wrapping import skip_hidden_pairs

Build = Callable[..., PreTrainedModel]
KINDS = [
    ("llama", None),
    ("llama", "head"),
    ("llama", "row"),
    ("llama", "learned head"),
    ("llama", "learned row"),
    ("llama", "tensor"),
    ("qwen3", None),
    ("qwen3", "tensor"),
]
"""Family, and scale (absmean if not said) and granularity of a ternary q_proj (None: dense)."""
EXACT = [kind for kind in KINDS if kind != ("llama", "tensor")]
SETTINGS = {"lr": 8e-4, "adamw_lr": 3e-4, "scale": "match_rms"}
GUILTY = torch.tensor([0.25, *[1.0] * 7])
"""The clip of one head of eight."""


@pytest.fixture
def build_kind(build_model: Build) -> Build:
    """A model whose q_proj is dense, or ternary with scales of a granularity."""

    def build(family: str, kind: str | None, **changes: Any) -> PreTrainedModel:
        model = build_model(family, bits=kind is not None, **changes)
        for layer in decoder_layers(model) if kind else ():
            scale, _, granularity = kind.rpartition(" ") if kind else ("", "", "")
            quantizer = QuantizerSettings.model_validate(
                {"scale": scale or "absmean", "granularity": granularity}
            )
            attention = layer.self_attn
            attention.q_proj = BitLinear.from_linear(
                attention.q_proj, quantizer, attention.head_dim
            )
        return model

    return build


def measure(model: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    """Largest logits [L, H] of the weights as they are."""
    recorder = AttentionLogitRecorder(model)
    model(input_ids=tokens_BT, use_cache=False)
    maxima = torch.stack(recorder.maxima_H())
    recorder.reset()
    return maxima


def test_a_model_that_another_training_has_wrapped_is_measured_alike(
    build_kind: Build, tokens_BT: Tensor
) -> None:
    model, wrapped = build_kind("llama", None), build_kind("llama", None)
    wrapped.load_state_dict(model.state_dict())
    skip_hidden_pairs(wrapped, torch.device("cpu"))
    assert wrapped.config._attn_implementation == BY_BLOCKS
    assert torch.equal(measure(wrapped, tokens_BT), measure(model, tokens_BT))


@pytest.mark.parametrize(("family", "granularity"), EXACT)
@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_measured_again_no_logit_is_over_the_threshold(
    build_kind: Build, tokens_BT: Tensor, family: str, granularity: str | None, strength: float
) -> None:
    model = build_kind(family, granularity)
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


def of_eight_heads(build_kind: Build, granularity: str | None) -> tuple[PreTrainedModel, Any]:
    shape = {"num_attention_heads": 8, "hidden_size": 64, "attention_bias": False}
    model = build_kind("llama", granularity, **shape)
    return model, decoder_layers(model)[0].self_attn


@pytest.mark.parametrize("granularity", [None, "head", "row"])
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_with_scales_of_its_own_a_head_is_clipped_alone_and_exactly(
    build_kind: Build, tokens_BT: Tensor, granularity: str | None, strength: float
) -> None:
    model, attention = of_eight_heads(build_kind, granularity)
    attention.q_proj.quantization_lambda = strength
    before_H = measure(model, tokens_BT)[0]
    keys = attention.k_proj.weight.detach().clone()
    assert shrink_queries(attention, GUILTY) == 0.0
    torch.testing.assert_close(measure(model, tokens_BT)[0], before_H * GUILTY)
    assert torch.equal(attention.k_proj.weight, keys)


def test_with_one_scale_rows_times_gamma_are_clipped_too_little_and_others_move(
    build_kind: Build, tokens_BT: Tensor
) -> None:
    model, attention = of_eight_heads(build_kind, "tensor")
    before_H = measure(model, tokens_BT)[0]
    with torch.no_grad():
        attention.q_proj.weight[:8] *= 0.25
    ratio_H = measure(model, tokens_BT)[0] / before_H
    assert ratio_H[0] > 0.3
    assert ((ratio_H[1:] - 1).abs() > 0.01).any()


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_with_one_scale_rows_shrink_until_the_head_is_clipped_and_others_stay_near(
    build_kind: Build, tokens_BT: Tensor, strength: float
) -> None:
    model, attention = of_eight_heads(build_kind, "tensor")
    attention.q_proj.quantization_lambda = strength
    before_H = measure(model, tokens_BT)[0]
    change = shrink_queries(attention, GUILTY)
    ratio_H = measure(model, tokens_BT)[0] / before_H
    assert 0.1 < ratio_H[0] < 0.4
    assert ((ratio_H[1:] - 1).abs() < 1 / 3).all()
    assert 0.01 < change <= 1 / 3


def test_with_one_scale_a_bias_shrinks_as_its_head_does(build_kind: Build) -> None:
    attention = decoder_layers(build_kind("llama", "tensor"))[0].self_attn
    gamma_H = torch.tensor([1.0, 0.4, 1.0, 1.0, 1.0, 1.0])
    seen, bias = quantize_weight(attention.q_proj.weight), attention.q_proj.bias.detach().clone()
    shrink_queries(attention, gamma_H)
    now = quantize_weight(attention.q_proj.weight)
    left_H = now.view(6, -1).norm(dim=1) / seen.view(6, -1).norm(dim=1)
    expected_H = left_H.where(gamma_H < 1, 1.0)
    torch.testing.assert_close(attention.q_proj.bias, bias * expected_H.repeat_interleave(8))
    assert (left_H[gamma_H < 1] <= 1.01 * gamma_H[gamma_H < 1]).all()


def test_with_one_scale_no_clip_moves_an_innocent_head_by_more_than_a_third(
    build_kind: Build,
) -> None:
    _, attention = of_eight_heads(build_kind, "tensor")
    gamma_H = torch.tensor([*[0.02] * 7, 1.0])
    before_ON = quantize_weight(attention.q_proj.weight)[56:]
    change = shrink_queries(attention, gamma_H)
    after_ON = quantize_weight(attention.q_proj.weight)[56:]
    moved = (after_ON - before_ON).norm() / before_ON.norm()
    assert moved.item() == pytest.approx(change, rel=1e-4)
    assert 0.2 < change <= 1 / 3
    for _ in range(5):  # the guilty heads are clipped further in the calls that follow
        assert shrink_queries(attention, gamma_H) <= 1 / 3
    left_ON = quantize_weight(attention.q_proj.weight)[:56]
    assert left_ON.norm() < 0.3 * before_ON.norm()


@pytest.mark.parametrize(("granularity", "innocents"), [("head", 1e-6), ("tensor", 0.35)])
def test_a_head_that_grows_for_ever_does_not_kill_the_others(
    build_kind: Build, tokens_BT: Tensor, granularity: str, innocents: float
) -> None:
    model, attention = of_eight_heads(build_kind, granularity)
    before_H = measure(model, tokens_BT)[0]
    threshold = before_H.max().item()
    for _ in range(100):
        with torch.no_grad():
            attention.q_proj.weight[:8] *= 1.1
        now_H = measure(model, tokens_BT)[0]
        shrink_queries(attention, (threshold / now_H).clamp(max=1.0))
    ratio_H = measure(model, tokens_BT)[0] / before_H
    assert ((ratio_H[1:] - 1).abs() <= innocents).all()
    assert ratio_H[0] * before_H[0] < 1.3 * threshold


@pytest.mark.parametrize(("family", "granularity"), KINDS)
def test_the_clip_acts_on_what_was_measured_since_the_last_one(
    build_kind: Build, tokens_BT: Tensor, family: str, granularity: str | None
) -> None:
    model = build_kind(family, granularity)
    largest = measure(model, tokens_BT)
    threshold = float(largest.flatten().sort().values[-3:].mean())
    clip = QkClip(model, threshold)
    model(input_ids=tokens_BT, use_cache=False)
    clip()
    seen = (clip.last.max_logit, clip.last.clipped_heads) if clip.last else None
    assert seen == (largest.max().item(), int((largest > threshold).sum()))
    assert clip.metrics()["train/qk_innocent_change"] == clip.last.innocent_change
    assert (clip.last.innocent_change > 0) == (family == "qwen3" or granularity == "tensor")
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


@pytest.mark.parametrize(("family", "granularity"), KINDS)
def test_training_keeps_growing_logits_near_the_threshold(
    build_kind: Build, tokens_BT: Tensor, family: str, granularity: str | None
) -> None:
    def largest_after_training(threshold: float) -> float:
        model = build_kind(family, granularity)
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
            for group in optimizer.param_groups:
                group["lr"] = 0.02
            optimizer.step()
        return measure(model, tokens_BT).max().item()

    start = measure(build_kind(family, granularity), tokens_BT).max().item()
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


def test_before_quantization_sets_in_the_one_learned_scale_of_all_heads_stays(build_kind: Build):
    model = build_kind("llama", "learned tensor")
    attention = decoder_layers(model)[0].self_attn
    projection = attention.q_proj
    projection.quantization_lambda = 0.0
    alpha, weight = (p.detach().clone() for p in (projection.alpha, projection.weight))
    gamma_H = torch.ones(model.config.num_attention_heads)
    gamma_H[0] = 0.5
    assert shrink_queries(attention, gamma_H) == 0.0
    assert torch.equal(projection.alpha, alpha)
    size = attention.head_dim
    assert torch.equal(projection.weight[:size], 0.5 * weight[:size])
    assert torch.equal(projection.weight[size:], weight[size:])


def test_the_scale_of_an_only_head_is_clipped_with_it():
    projection = BitLinear.from_linear(
        nn.Linear(16, 8, bias=False), QuantizerSettings(scale="learned", granularity="head"), 8
    )
    attention, activation = nn.Module(), torch.randn(5, 16)
    attention.q_proj = projection
    before = projection(activation)
    shrink_queries(attention, torch.tensor([0.5]))
    torch.testing.assert_close(projection(activation), 0.5 * before)


SHAPE: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 1,
    "num_attention_heads": 6, "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: Phi3ForCausalLM(Phi3Config(**SHAPE)), "Phi3Attention has no q_proj"),
        (
            lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, head_dim=8)),
            "gain of Gemma3RMSNorm is not a factor",
        ),
    ],
)
def test_queries_that_can_not_be_clipped_are_refused_before_the_first_step(
    build: Callable[[], PreTrainedModel], reason: str
):
    with pytest.raises(UserError, match=reason):
        build_optimizer(build(), OptimizerSettings(name="muonclip"))
