from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from wrinklefree.evaluate.cost import cost_of
from wrinklefree.export.hf import write_tensors_for_stock
from wrinklefree.export.layouts import layout_of
from wrinklefree.export.settings import ExportSettings
from wrinklefree.export.student import Student
from wrinklefree.models.folder import save_model
from wrinklefree.models.future_heads import attach_future_heads
from wrinklefree.models.transforms import ModelFormat, ternary
from wrinklefree.quant.settings import QuantizerSettings

V, D, F, KV = 300, 32, 48, 16
ATTENTION, MLP = 2 * D * D + 2 * D * KV, 3 * D * F
HIDDEN = 2 * (ATTENTION + MLP)
NORMS = 2 * 2 * D + D
SUBLN = 2 * (D + F)
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
INPUTS_AND_OUTPUTS = 2 * (4 * D + 2 * D + 2 * KV + 3 * (D + F))
"""Of q, o, k, v, gate, up and down in two layers."""


def llama(tied: bool = True, **quantizer: Any) -> PreTrainedModel:
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied))
    if quantizer:
        ternary(QuantizerSettings.model_validate(quantizer)).apply(model)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_a_dense_model_is_what_is_counted_by_hand(tied: bool):
    cost = cost_of(llama(tied))
    head = V * D
    assert (cost.embedding, cost.ternary, cost.norms) == (V * D, 0, NORMS)
    assert cost.matrices == HIDDEN + (0 if tied else head)
    assert (cost.additions, cost.scalings, cost.scales) == (0, 0, 0)
    assert cost.multiply_adds == HIDDEN + head
    assert cost.picojoules == pytest.approx(1.5 * (HIDDEN + head))
    assert cost.parameters == sum(p.numel() for p in llama(tied).parameters())
    assert cost.bytes_with(4) == 4 * cost.parameters


@pytest.mark.parametrize(
    ("quantizer", "scales"),
    [
        ({"scale": "absmean"}, 14),
        ({"scale": "learned"}, 14),
        ({"granularity": "row"}, 2 * (3 * D + 2 * KV + 2 * F)),
        # Four heads of queries and two of keys and values have a scale each, and o and three in
        # the MLP one.
        ({"granularity": "head"}, 2 * (8 + 4)),
    ],
)
def test_a_ternary_model_is_what_is_counted_by_hand(quantizer: dict[str, Any], scales: int):
    cost = cost_of(llama(**quantizer))
    assert (cost.embedding, cost.ternary, cost.matrices) == (V * D, HIDDEN, 0)
    assert (cost.norms, cost.scales) == (NORMS + SUBLN, scales)
    assert (cost.additions, cost.multiply_adds) == (HIDDEN, V * D)
    assert cost.scalings == INPUTS_AND_OUTPUTS
    picojoules = 0.1 * HIDDEN + 1.5 * V * D + 1.1 * INPUTS_AND_OUTPUTS
    assert cost.picojoules == pytest.approx(picojoules)
    assert cost.bytes_with(2) == HIDDEN // 4 + 4 * scales + 2 * (V * D + NORMS + SUBLN)
    assert cost.as_json()["bytes_float16"] == cost.bytes_with(2)


def test_each_group_along_the_inputs_is_a_sum_that_is_scaled():
    sizes = SIZES | {"hidden_size": 128, "intermediate_size": 256}
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    ternary(QuantizerSettings(granularity="group", group_size=64)).apply(model)
    groups = 2 * (2 * 128 * 2 + 2 * 64 * 2 + 2 * 256 * 2 + 128 * 4)
    inputs = 2 * (4 * 128 + 2 * 128 + 256)
    cost = cost_of(model)
    assert (cost.scales, cost.scalings) == (groups, groups + inputs)


@pytest.mark.parametrize("ternary_experts", [True, False])
def test_a_token_takes_some_of_the_experts(ternary_experts: bool):
    experts, taken, features = 8, 2, 16
    config = Qwen3MoeConfig(
        **SIZES,
        head_dim=8,
        num_experts=experts,
        num_experts_per_tok=taken,
        moe_intermediate_size=features,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        tie_word_embeddings=True,
    )
    model = Qwen3MoeForCausalLM(config)
    if ternary_experts:
        ternary(subln=False).apply(model)
    cost = cost_of(model)
    stacks, router = 3 * D * features, experts * D
    assert cost.ternary + cost.matrices == 2 * (ATTENTION + router + experts * stacks)
    active = cost.additions if ternary_experts else cost.multiply_adds - 2 * router - V * D
    assert active == 2 * (ATTENTION + taken * stacks)


def test_heads_for_later_tokens_are_no_part_of_the_model():
    model = llama()
    before = cost_of(model)
    attach_future_heads(model, 2)
    assert cost_of(model) == before


def test_bytes_are_those_of_the_tensors_in_the_folders(tmp_path: Path, tokenizer_folder: Path):
    model = llama(tied=False)
    save_model(tmp_path / "base", model, ModelFormat(), tokenizer_folder)
    written = load_file(tmp_path / "base" / "model.safetensors").values()
    assert cost_of(model).bytes_with(4) == sum(tensor.nbytes for tensor in written)

    student = Student(tmp_path / "base", llama(scale="learned"), ternary())
    write_tensors_for_stock(ExportSettings(), layout_of(student), student.model, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors").values()
    assert cost_of(student.model).bytes_with(4) == sum(tensor.nbytes for tensor in written)
