from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from wrinklefree.errors import UserError
from wrinklefree.models.layers import decoder_layers
from wrinklefree.models.surgery import (
    SublnLinear,
    insert_bitlinear,
    insert_subln,
    subln_modules,
)
from wrinklefree.optim.partition import partition_parameters
from wrinklefree.quant.bitlinear import BitLinear, set_quantization_lambda
from wrinklefree.quant.settings import QuantizerSettings

Tiny = Callable[..., PreTrainedModel]
FAMILIES = pytest.mark.parametrize("family", ["llama", "qwen3"])


def logits_of(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40)[None]).logits


@FAMILIES
def test_exactly_the_linear_layers_of_the_decoder_become_ternary(tiny: Tiny, family: str) -> None:
    model = tiny(family, tie_word_embeddings=False)
    parameters = dict(model.named_parameters())
    insert_bitlinear(model)
    ternary = {name for name, module in model.named_modules() if isinstance(module, BitLinear)}
    attention = {f"self_attn.{name}_proj" for name in "qkvo"}
    mlp = {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    assert ternary == {f"model.layers.{i}.{name}" for i in (0, 1) for name in attention | mlp}
    assert isinstance(model.get_output_embeddings(), nn.Linear)
    after = dict(model.named_parameters())
    assert list(after) == list(parameters)
    assert all(after[name] is parameter for name, parameter in parameters.items())


@FAMILIES
def test_strength_zero_leaves_the_function_and_others_change_it(tiny: Tiny, family: str) -> None:
    model = tiny(family)
    before = logits_of(model)
    insert_bitlinear(model)
    set_quantization_lambda(model, 0.0)
    assert torch.equal(logits_of(model), before)
    distances = []
    for strength in (0.01, 0.5, 1.0):
        set_quantization_lambda(model, strength)
        distances.append((logits_of(model) - before).norm().item())
    assert distances[0] < distances[1] < distances[2]


@FAMILIES
def test_norms_have_the_size_of_their_input_and_the_models_epsilon(tiny: Tiny, family: str) -> None:
    model = tiny(family, rms_norm_eps=3e-4)
    insert_subln(model)
    for layer in decoder_layers(model):
        modules = subln_modules(layer)
        # Qwen3 here: 4 heads of 32, not the hidden size of 64.
        heads = 128 if family == "qwen3" else 64
        assert modules["self_attn.o_proj"].norm.weight.shape == (heads,)
        assert modules["mlp.down_proj"].norm.weight.shape == (100,)
        assert all(module.norm.variance_epsilon == 3e-4 for module in modules.values())


@pytest.mark.parametrize("norms_first", [True, False])
def test_subln_is_an_rms_norm_before_the_quantized_product(tiny: Tiny, norms_first: bool) -> None:
    model = tiny()
    for insert in (insert_subln, insert_bitlinear)[:: 1 if norms_first else -1]:
        insert(model)
    module = decoder_layers(model)[1].get_submodule("mlp.down_proj")
    assert isinstance(module, SublnLinear)
    assert isinstance(module.linear, BitLinear)
    nn.init.normal_(module.norm.weight)
    x = torch.randn(7, 100, dtype=torch.float64)
    normalised = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = module.linear((normalised * module.norm.weight.double()).float())
    torch.testing.assert_close(module(x.float()), expected, rtol=1e-3, atol=1e-3)


def test_other_architectures_are_refused() -> None:
    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=8)
    with pytest.raises(UserError, match="GPT2LMHeadModel"):
        insert_bitlinear(GPT2LMHeadModel(config))
    gemma = AutoConfig.for_model("gemma3_text", hidden_size=8, num_hidden_layers=1, vocab_size=11)
    with pytest.raises(UserError, match="Gemma3ForCausalLM: no hidden_act in config.json"):
        insert_bitlinear(AutoModelForCausalLM.from_config(gemma))


@FAMILIES
def test_only_queries_keys_and_values_have_a_scale_for_each_head(tiny: Tiny, family: str) -> None:
    model = tiny(family)
    insert_bitlinear(model, QuantizerSettings(granularity="head"))
    heads = {"q_proj": 4, "k_proj": 2, "v_proj": 2}
    for name, module in model.named_modules():
        if isinstance(module, BitLinear):
            projection = name.rpartition(".")[2]
            _, scale = module.ternary_codes()
            expected = heads.get(projection, 1)
            assert module.granularity == ("head" if projection in heads else "tensor")
            assert scale.unique().numel() == expected
            if expected > 1:
                assert scale.reshape(expected, -1).unique(dim=1).shape == (expected, 1)


def test_a_head_s_codes_are_those_of_its_rows_alone(tiny: Tiny) -> None:
    """What MuonClip relies on: rows of one head leave the codes of the others as they are."""
    model = tiny()
    insert_bitlinear(model, QuantizerSettings(granularity="head"))
    layer = decoder_layers(model)[0].get_submodule("self_attn.q_proj")
    assert isinstance(layer, BitLinear)
    codes, scale = layer.ternary_codes()
    with torch.no_grad():
        layer.weight[16:32] *= 0.25
    after, scale_after = layer.ternary_codes()
    assert torch.equal(after, codes)
    factor = torch.ones(64, 1)
    factor[16:32] = 0.25
    torch.testing.assert_close(scale_after, scale * factor)


def test_a_learned_scale_adds_one_parameter_per_layer_that_is_no_matrix(tiny: Tiny) -> None:
    model = tiny()
    before = {name for name, _ in model.named_parameters()}
    insert_bitlinear(model, QuantizerSettings(scale="learned", granularity="row"))
    added = {name: p for name, p in model.named_parameters() if name not in before}
    assert len(added) == 14 and all(name.endswith("_proj.alpha") for name in added)
    kinds = {id(p): part.kind for part in partition_parameters(model) for p in part.parameters}
    assert {kinds[id(parameter)] for parameter in added.values()} == {"other"}


def test_inputs_that_are_no_whole_number_of_groups_are_refused_by_name(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"mlp\.down_proj .* 100 inputs are no multiple .* 64"):
        insert_bitlinear(tiny(), QuantizerSettings(granularity="group", group_size=64))
