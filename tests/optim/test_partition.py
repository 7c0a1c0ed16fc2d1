from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.models.layers import decoder_layers
from wrinklefree.optim.partition import matrices, partition_parameters

Build = Callable[..., PreTrainedModel]
ATTENTION = {f"self_attn.{letter}_proj.weight" for letter in "qkvo"}
MLP = {f"mlp.{way}_proj.weight" for way in ("gate", "up", "down")}
NORMS = {"input_layernorm.weight", "post_attention_layernorm.weight", "norm.weight"}
QK_NORMS = {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}
BIASES = {f"self_attn.{letter}_proj.bias" for letter in "qkvo"}
STACKS = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
EMBEDDING = {"embed_tokens.weight"}


def kinds_of(model: PreTrainedModel) -> dict[str, set[str]]:
    """Names within a layer, by kind."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, set[str]] = {}
    for kind, _, parameters in partition_parameters(model):
        for parameter in parameters:
            name = names[id(parameter)].removeprefix("model.")
            name = name.split(".", 2)[-1] if name.startswith("layers.") else name
            found.setdefault(kind, set()).add(name)
    return found


@pytest.mark.parametrize("bits", [False, True])
@pytest.mark.parametrize(("family", "norms"), [("llama", NORMS), ("qwen3", NORMS | QK_NORMS)])
def test_dense_models(build_model: Build, family: str, norms: set[str], bits: bool) -> None:
    assert kinds_of(build_model(family, bits=bits)) == {
        "matrix": ATTENTION | MLP,
        "embedding": EMBEDDING,
        "norm": norms,
        "other": BIASES,
    }


def test_experts_are_batches_of_matrices_and_their_router_is_neither(build_model: Build) -> None:
    model = build_model("qwen3_moe", tie_word_embeddings=False)
    assert kinds_of(model) == {
        "matrix": ATTENTION,
        "expert_stack": STACKS,
        "router": {"mlp.gate.weight"},
        "embedding": EMBEDDING,
        "head": {"lm_head.weight"},
        "norm": NORMS | QK_NORMS,
        "other": BIASES,
    }
    rows = {
        tuple(parameter.shape): rows
        for kind, rows, parameters in partition_parameters(model)
        for parameter in parameters
        if kind == "expert_stack"
    }
    assert rows == {(5, 48, 48): [24, 24], (5, 48, 24): None}


def test_fused_projections_are_known_by_their_rows(build_model: Build) -> None:
    model = build_model("phi3", hidden_size=48, num_attention_heads=6)
    rows = {
        tuple(parameter.shape): rows
        for kind, rows, parameters in partition_parameters(model)
        for parameter in parameters
        if kind == "matrix"
    }
    # 6 query heads and 2 key heads of size 8; gate and up of 56 rows each.
    fused = {(80, 48): [48, 16, 16], (112, 48): [56, 56]}
    assert rows == fused | {(48, 48): None, (48, 56): None}


def test_fused_rows_that_the_configuration_does_not_explain_are_refused(build_model: Build) -> None:
    model = build_model("phi3")
    model.config.num_key_value_heads = 3
    with pytest.raises(
        ValueError, match=r"qkv_proj\.weight has 80 rows, expected 48 .* 24 of keys"
    ):
        partition_parameters(model)


@pytest.mark.parametrize("leaf", ["gate_up_proj_bias", "down_proj_bias"])
def test_biases_of_experts_are_no_matrices(build_model: Build, leaf: str) -> None:
    model = build_model("qwen3_moe")
    experts = decoder_layers(model)[0].mlp.experts
    experts.register_parameter(leaf, nn.Parameter(torch.zeros(5, 48)))
    assert f"mlp.experts.{leaf}" in kinds_of(model)["other"]


def test_scales_of_a_ternary_layer_are_no_matrix(build_model: Build) -> None:
    model = build_model()
    decoder_layers(model)[0].mlp.up_proj.alpha = nn.Parameter(torch.ones(56, 1))
    assert "mlp.up_proj.alpha" in kinds_of(model)["other"]


def test_a_convolution_is_no_stack_of_experts(build_model: Build) -> None:
    model = build_model()
    decoder_layers(model)[0].conv = nn.Conv1d(4, 4, 3, groups=4)
    assert {"conv.weight", "conv.bias"} < kinds_of(model)["other"]


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_each_parameter_appears_once_although_the_head_is_tied(
    build_model: Build, family: str
) -> None:
    model = build_model(family)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    found = [id(p) for *_, parameters in partition_parameters(model) for p in parameters]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters())
    assert kinds_of(model)["embedding"] == EMBEDDING and "head" not in kinds_of(model)


def test_parameters_that_do_not_train_are_still_in_the_partition(build_model: Build) -> None:
    model = build_model().requires_grad_(False)
    found = [p for *_, parameters in partition_parameters(model) for p in parameters]
    assert len(found) == len(list(model.parameters()))


def test_a_tie_between_a_hidden_matrix_and_the_head_is_refused(build_model: Build) -> None:
    model = build_model()
    model.lm_head.weight = decoder_layers(model)[1].self_attn.o_proj.weight
    with pytest.raises(ValueError, match=r"lm_head\.weight"):
        partition_parameters(model)


def test_hidden_matrices_tied_to_each_other_appear_once(build_model: Build) -> None:
    model = build_model()
    first, second = decoder_layers(model)
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    found = [p for *_, parameters in partition_parameters(model) for p in parameters]
    assert sum(parameter is first.mlp.up_proj.weight for parameter in found) == 1


def test_distinct_parameters_in_the_same_memory_are_refused(build_model: Build) -> None:
    model = build_model()
    model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.detach())
    with pytest.raises(ValueError, match="same memory"):
        partition_parameters(model)


def test_a_model_without_layers_is_refused(build_model: Build) -> None:
    model = build_model()
    model.model.layers = torch.nn.Identity()
    with pytest.raises(UserError, match="layers"):
        decoder_layers(model)


def test_the_matrices_of_a_stack_are_views_in_order() -> None:
    stack = torch.arange(2 * 5 * 3).view(2, 5, 3)
    pieces = matrices(stack, [4, 1])
    expected = [stack[0, :4], stack[0, 4:], stack[1, :4], stack[1, 4:]]
    assert all(torch.equal(a, b) for a, b in zip(pieces, expected, strict=True))
    pieces[3].zero_()
    assert not stack[1, 4].any() and stack[1, :4].all()
