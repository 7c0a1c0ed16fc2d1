from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.models.layers import decoder_layers
from wrinklefree.models.surgery import (
    SublnLinear,
    insert_bitlinear,
    insert_subln,
    subln_modules,
)
from wrinklefree.quant.bitlinear import BitLinear, set_quantization_lambda

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
