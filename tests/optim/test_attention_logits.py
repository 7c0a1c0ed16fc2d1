from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from wrinklefree.models.layers import decoder_layers
from wrinklefree.optim import attention_logits
from wrinklefree.optim.attention_logits import (
    RECORDING_ATTENTION,
    AttentionLogitRecorder,
    max_attention_logits,
)

Build = Callable[..., PreTrainedModel]


def two_documents(rows: int, length: int, boundary: int) -> Tensor:
    """bool [B, 1, T, T]: causal, and never across the boundary."""
    document = torch.arange(length) >= boundary
    same = document[:, None] == document[None, :]
    return (same & torch.ones(length, length).tril().bool()).expand(rows, 1, length, length)


def by_pairs(model: PreTrainedModel, tokens_BT: Tensor, allowed_BTT: Tensor) -> list[list[float]]:
    """Largest logit per layer and head, pair by pair, from what the projections put out."""
    maxima = []
    for layer in decoder_layers(model):
        attention, seen = layer.self_attn, {}
        sources = {name: getattr(attention, f"{name}_norm", None) for name in "qk"}
        hooks = [
            (sources[name] or getattr(attention, f"{name}_proj")).register_forward_hook(
                lambda _, __, output, name=name, seen=seen: seen.update({name: output})
            )
            for name in "qk"
        ]
        hooks.append(
            attention.register_forward_pre_hook(
                lambda _, __, kwargs, seen=seen: seen.update(rope=kwargs["position_embeddings"]),
                with_kwargs=True,
            )
        )
        with torch.no_grad():
            model(input_ids=tokens_BT, attention_mask=allowed_BTT[:, None], use_cache=False)
        for hook in hooks:
            hook.remove()
        rows, length = tokens_BT.shape
        q, k = (seen[name].view(rows, length, -1, 8).transpose(1, 2) for name in "qk")
        q, k = apply_rotary_pos_emb(q, k, *seen["rope"])
        maxima.append(
            [
                max(
                    (q[b, head, t] @ k[b, head // 3, s]).item() / 8**0.5
                    for b, t, s in allowed_BTT.nonzero().tolist()
                )
                for head in range(6)
            ]
        )
    return maxima


def run(model: PreTrainedModel, tokens_BT: Tensor, mask: Tensor | None = None) -> Tensor:
    return model(input_ids=tokens_BT, attention_mask=mask, use_cache=False).logits


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("bits", [False, True])
def test_equals_the_maximum_over_pairs(
    build_model: Build, tokens_BT: Tensor, family: str, bits: bool
) -> None:
    model = build_model(family, bits=bits)
    mask = two_documents(3, 13, boundary=5)
    expected = by_pairs(model, tokens_BT, mask[:, 0])
    recorder = AttentionLogitRecorder(model)
    run(model, tokens_BT, mask)
    for maximum_H, row in zip(recorder.maxima_H(), expected, strict=True):
        assert maximum_H.tolist() == pytest.approx(row, rel=1e-5)


def test_logits_are_scaled_as_the_layer_scales_them(build_model: Build, tokens_BT: Tensor) -> None:
    model = build_model()
    first = decoder_layers(model)[0].self_attn
    expected = by_pairs(model, tokens_BT, torch.ones(3, 13, 13).tril().bool())[0]
    first.scaling *= 3
    recorder = AttentionLogitRecorder(model)
    run(model, tokens_BT)
    found = recorder.maxima_H()[0].tolist()
    assert found == pytest.approx([3 * one for one in expected], rel=1e-5)


def test_without_a_mask_attention_is_causal(build_model: Build, tokens_BT: Tensor) -> None:
    model = build_model()
    causal = torch.ones(3, 13, 13).tril().bool()
    expected = by_pairs(model, tokens_BT, causal)
    recorder = AttentionLogitRecorder(model)
    run(model, tokens_BT)
    assert recorder.maxima_H()[1].tolist() == pytest.approx(expected[1], rel=1e-5)


def test_takes_the_maximum_over_micro_batches_until_reset(
    build_model: Build, tokens_BT: Tensor
) -> None:
    model = build_model()
    recorder = AttentionLogitRecorder(model)
    parts = []
    for row in range(3):
        run(model, tokens_BT[row : row + 1])
        parts.append(torch.stack(recorder.maxima_H()))
        recorder.reset()
    for row in (2, 0, 1):
        run(model, tokens_BT[row : row + 1])
    torch.testing.assert_close(torch.stack(recorder.maxima_H()), torch.stack(parts).amax(0))


def test_passes_without_gradients_do_not_count(build_model: Build, tokens_BT: Tensor) -> None:
    model = build_model()
    recorder = AttentionLogitRecorder(model)
    with torch.no_grad():
        run(model, tokens_BT)
    with pytest.raises(RuntimeError, match="no attention logits"):
        recorder.maxima_H()


def test_gradient_checkpointing_records_the_same(build_model: Build, tokens_BT: Tensor) -> None:
    model = build_model()
    recorder = AttentionLogitRecorder(model)
    run(model, tokens_BT)
    expected = recorder.maxima_H()
    recorder.reset()
    model.activation_checkpointing_enable()
    model.train()
    run(model, tokens_BT).sum().backward()
    assert all(map(torch.equal, recorder.maxima_H(), expected))


@pytest.mark.parametrize("mask", [None, "padding", "documents"])
def test_outputs_and_gradients_stay_bit_identical(
    build_model: Build, tokens_BT: Tensor, mask: str | None
) -> None:
    plain, recorded = build_model("qwen3"), build_model("qwen3")
    AttentionLogitRecorder(recorded)
    padding = torch.ones_like(tokens_BT)
    padding[1, :4] = 0
    given = {None: None, "padding": padding, "documents": two_documents(3, 13, boundary=6)}[mask]
    logits = [run(model, tokens_BT, given) for model in (plain, recorded)]
    assert torch.equal(*logits)
    for values in logits:
        values.square().sum().backward()
    for ours, theirs in zip(recorded.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_logits_that_are_not_finite_are_left_out(build_model: Build, tokens_BT: Tensor) -> None:
    model = build_model()
    recorder = AttentionLogitRecorder(model)
    run(model, tokens_BT)
    expected_H = recorder.maxima_H()[0]
    keys = decoder_layers(model)[0].self_attn.k_proj
    for bad in (torch.nan, torch.inf):
        keys.bias.data.fill_(bad)
        run(model, tokens_BT)
    assert torch.equal(recorder.maxima_H()[0], expected_H)


def test_autocast_changes_the_projections_but_not_the_precision_of_the_product(
    build_model: Build, tokens_BT: Tensor
) -> None:
    query, key = (torch.randn(2, heads, 9, 8).bfloat16() for heads in (6, 2))
    options = {"scaling": 0.3, "mask": None, "causal": True}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed_H = max_attention_logits(query, key, **options)
    assert torch.equal(mixed_H, max_attention_logits(query.float(), key.float(), **options))


@pytest.mark.parametrize("causal", [False, True])
def test_blocks_of_queries_give_the_same_maximum(
    monkeypatch: pytest.MonkeyPatch, causal: bool
) -> None:
    query, key = torch.randn(2, 6, 11, 8), torch.randn(2, 2, 11, 8)
    mask = None if causal else torch.rand(2, 1, 11, 11) < 0.5
    options = {"scaling": 0.3, "mask": mask, "causal": causal}
    whole_H = max_attention_logits(query, key, **options)
    # Blocks of 4, 4 and 3 queries.
    monkeypatch.setattr(attention_logits, "_LARGEST_BLOCK", 4 * 2 * 6 * 11)
    torch.testing.assert_close(max_attention_logits(query, key, **options), whole_H)


def test_the_saved_configuration_does_not_know_of_it(build_model: Build, tmp_path: Path) -> None:
    model = build_model()
    AttentionLogitRecorder(model)
    model.config.save_pretrained(tmp_path)
    assert RECORDING_ATTENTION not in (tmp_path / "config.json").read_text(encoding="utf-8")
    assert AutoConfig.from_pretrained(tmp_path)._attn_implementation != RECORDING_ATTENTION


def test_a_copy_of_the_model_is_not_recorded(build_model: Build, tokens_BT: Tensor) -> None:
    model = build_model()
    recorder = AttentionLogitRecorder(model)
    twin = copy.deepcopy(model)
    assert torch.equal(run(twin, tokens_BT), run(model, tokens_BT))
    recorder.reset()
    run(twin, tokens_BT)
    with pytest.raises(RuntimeError, match="no attention logits"):
        recorder.maxima_H()


def test_one_mask_for_all_queries_serves_every_block_of_them(monkeypatch: pytest.MonkeyPatch):
    query, key = torch.randn(2, 4, 16, 8), torch.randn(2, 2, 16, 8)
    mask = torch.rand(2, 1, 1, 16) < 0.5
    wanted = max_attention_logits(
        query, key, scaling=1.0, mask=mask.expand(2, 1, 16, 16), causal=False
    )
    monkeypatch.setattr(attention_logits, "_LARGEST_BLOCK", 2 * 4 * 16 * 4)
    found = max_attention_logits(query, key, scaling=1.0, mask=mask, causal=False)
    assert torch.equal(found, wanted)
