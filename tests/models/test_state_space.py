from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.evaluate.generate import decode_greedily
from wrinklefree.mixture.batch import Batch
from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.calibration import calibrate_subln
from wrinklefree.models.dense import build_scratch
from wrinklefree.models.folder import load_model, save_model
from wrinklefree.models.forward import hidden_states, next_token_logits
from wrinklefree.models.future_heads import attach_future_heads
from wrinklefree.models.layers import decoder_layers
from wrinklefree.models.reconstruct import reconstruct_layers
from wrinklefree.models.settings import (
    ModelSettings,
    PruneSettings,
    ReconstructSettings,
    SublnSettings,
)
from wrinklefree.models.state_space import reset_states
from wrinklefree.models.subln_stage import insert_subln_stage
from wrinklefree.models.surgery import entries_by_kind, insert_bitlinear, insert_subln
from wrinklefree.models.transforms import DiffuseBlocks, ModelFormat, ternary
from wrinklefree.optim.attention_logits import AttentionLogitRecorder
from wrinklefree.optim.partition import partition_parameters
from wrinklefree.quant.bitlinear import set_quantization_lambda

Tiny = Callable[..., PreTrainedModel]
MakeBatch = Callable[..., Batch]
VOCABULARY = 97
SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "layers": 3, "heads": 2, "key_value_heads": 1,
    "initializer_range": 0.1,
    "state_space": {"attention_layers": [1], "heads": 4, "state_size": 8},
}  # fmt: skip
DOCUMENTS = [[5, 1, 80, 3], [30, 59]]
"""Tokens of the documents of each row; some lie across chunks of 64, the last is padding."""


def hybrid(seed: int = 0, **changes: Any) -> PreTrainedModel:
    return build_scratch(ModelSettings(**SHAPE | changes), VOCABULARY, 128, 0, seed).eval()


def as_in_transformers(model: PreTrainedModel) -> PreTrainedModel:
    """The same dense model without anything of ours."""
    stock = AutoModelForCausalLM.from_config(model.config, attn_implementation="sdpa")
    stock.load_state_dict(model.state_dict())
    return stock.to(model.dtype).eval()


def packed() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, positions and documents."""
    ids = [[n for n, length in enumerate(row) for _ in range(length)] for row in DOCUMENTS]
    places = [[place for length in row for place in range(length)] for row in DOCUMENTS]
    documents_BT = torch.tensor(ids)
    documents_BT[1, 30:] = -1
    torch.manual_seed(7)
    return torch.randint(1, VOCABULARY, documents_BT.shape), torch.tensor(places), documents_BT


def test_a_document_in_a_packed_row_is_read_as_transformers_reads_it_alone() -> None:
    model = hybrid().double()
    stock = as_in_transformers(model)
    tokens_BT, positions_BT, documents_BT = packed()
    mask = causal_document_mask(documents_BT)
    found_BTD = hidden_states(model, tokens_BT, positions_BT, mask)
    direction_BTD = torch.randn_like(found_BTD)
    (found_BTD * direction_BTD).sum().backward()
    without_reset_BTD = stock.get_decoder()(
        tokens_BT, mask.dense(), positions_BT, use_cache=False
    ).last_hidden_state
    for row, lengths in enumerate(DOCUMENTS):
        start = 0
        for length in lengths:
            alone_1T = tokens_BT[row, start : start + length][None]
            alone_TD = stock.get_decoder()(alone_1T, use_cache=False).last_hidden_state[0]
            places = slice(start, start := start + length)
            (alone_TD * direction_BTD[row, places]).sum().backward()
            torch.testing.assert_close(found_BTD[row, places], alone_TD, rtol=1e-5, atol=1e-6)
            if places.start:
                assert (without_reset_BTD[row, places] - alone_TD).abs().max() > 0.01
    for own, theirs in zip(model.parameters(), stock.parameters(), strict=True):
        assert own.grad is not None and theirs.grad is not None
        assert (own.grad - theirs.grad).norm() < 1e-5 * theirs.grad.norm()


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_ternary_layers_read_packed_documents_as_they_read_them_alone(strength: float) -> None:
    model = hybrid().double().train()
    insert_subln(model)
    insert_bitlinear(model)
    set_quantization_lambda(model, strength)
    tokens_BT, positions_BT, documents_BT = packed()
    mask = causal_document_mask(documents_BT)
    whole_BTV = next_token_logits(model, tokens_BT, positions_BT, mask)
    part = slice(6, 86)
    alone = causal_document_mask(documents_BT[:1, part])
    alone_BTV = next_token_logits(model, tokens_BT[:1, part], positions_BT[:1, part], alone)
    torch.testing.assert_close(whole_BTV[:1, part], alone_BTV, rtol=1e-5, atol=1e-6)
    assert torch.equal(model.eval()(tokens_BT[:1, part], use_cache=False).logits, alone_BTV)


def test_a_text_that_is_written_token_by_token_is_the_one_that_is_read_at_once() -> None:
    model = hybrid(initializer_range=0.3).double()
    insert_subln(model)
    insert_bitlinear(model)
    set_quantization_lambda(model, 1.0)
    prompt = [5, 9, 2, 40, 11]
    new = decode_greedily(model, prompt, new_tokens=12, end_of_text_id=VOCABULARY)
    with torch.no_grad():
        logits_TV = model(torch.tensor([prompt + new]), use_cache=False).logits[0]
    assert new == logits_TV[len(prompt) - 1 : -1].argmax(-1).tolist()
    assert len(set(new)) > 3


def test_projections_are_ternary_and_what_belongs_to_a_state_is_not() -> None:
    model = hybrid()
    insert_subln(model)
    insert_bitlinear(model)
    entries = entries_by_kind(model)
    parts = {
        kind: {name.removesuffix(".weight") for name in names} for kind, names in entries.items()
    }
    assert parts["ternary"] == {
        "mamba.in_proj", "mamba.out_proj", "self_attn.q_proj", "self_attn.k_proj",
        "self_attn.v_proj", "self_attn.o_proj.linear", "feed_forward.gate_proj",
        "feed_forward.up_proj", "feed_forward.down_proj.linear",
    }  # fmt: skip
    assert parts["dense"] == {
        "mamba.A_log", "mamba.D", "mamba.dt_bias", "mamba.conv1d", "mamba.conv1d.bias",
        "mamba.norm", "self_attn.o_proj.norm", "feed_forward.down_proj.norm", "input_layernorm",
        "pre_ff_layernorm",
    }  # fmt: skip
    assert entries["ternary"]["mamba.out_proj.weight"] == 2 * 64 * 32
    kinds = {id(p): part.kind for part in partition_parameters(model) for p in part.parameters}
    mixer = decoder_layers(model)[0].get_submodule("mamba")
    found = {name: kinds[id(parameter)] for name, parameter in mixer.named_parameters()}
    assert found == {
        "A_log": "other", "D": "other", "dt_bias": "other", "conv1d.weight": "other",
        "conv1d.bias": "other", "norm.weight": "norm", "in_proj.weight": "matrix",
        "out_proj.weight": "matrix",
    }  # fmt: skip
    assert len(AttentionLogitRecorder(model).attentions) == 1


def test_untrained_heads_remember_between_ten_and_a_thousand_tokens() -> None:
    steps = [
        functional.softplus(layer.get_submodule("mamba").get_parameter("dt_bias"))
        for layer in decoder_layers(hybrid(state_space={**SHAPE["state_space"], "heads": 64}))
        if hasattr(layer, "mamba")
    ]
    step_H = torch.cat(steps)
    assert 0.001 * 0.99 < step_H.min() < 0.005 and 0.02 < step_H.max() < 0.1 * 1.01


def test_gains_are_fitted_and_layers_reconstructed_on_packed_rows(
    batch: MakeBatch, tmp_path: Path
) -> None:
    model, rows = hybrid(), [batch(rows=4), batch(rows=4)]
    insert_subln(model)
    insert_bitlinear(model)
    gains = calibrate_subln(model, rows, "calibrated")
    assert [(one["layer"], one["module"]) for one in gains] == [
        (0, "feed_forward.down_proj"), (1, "self_attn.o_proj"), (1, "feed_forward.down_proj"),
        (2, "feed_forward.down_proj"),
    ]  # fmt: skip
    mask = causal_document_mask(rows[0].document_ids_BT)
    read: list[Tensor] = []
    module = decoder_layers(model)[2].get_submodule("feed_forward.down_proj")
    with module.register_forward_pre_hook(lambda _, given: read.append(given[0].double())):
        set_quantization_lambda(model, 0.0)
        hidden_states(model, rows[0].tokens_BT, rows[0].positions_BT, mask)
        mask = causal_document_mask(rows[1].document_ids_BT)
        hidden_states(model, rows[1].tokens_BT, rows[1].positions_BT, mask)
    real_MN = torch.cat([x[b.document_ids_BT >= 0] for x, b in zip(read, rows, strict=True)])
    norm: Any = module.get_submodule("norm")
    normal_MN = real_MN * torch.rsqrt(
        real_MN.square().mean(-1, keepdim=True) + norm.variance_epsilon
    )
    fitted_N = (real_MN * normal_MN).sum(0) / normal_MN.square().sum(0)
    torch.testing.assert_close(norm.weight.double(), fitted_N, rtol=1e-3, atol=1e-5)
    facts = reconstruct_layers(model, rows, ReconstructSettings(epochs=8), tmp_path)
    for errors in facts["layers"]:
        assert errors["error_after"] < errors["error_before"]


@pytest.mark.parametrize("model_format", [ModelFormat(), ternary()], ids=["dense", "ternary"])
def test_a_loaded_model_reads_packed_rows_as_the_saved_one(
    model_format: ModelFormat, tokenizer_folder: Path, tmp_path: Path
) -> None:
    model = hybrid()
    model_format.apply(model)
    save_model(tmp_path / "model", model, model_format, tokenizer_folder)
    tokens_BT, positions_BT, documents_BT = packed()
    mask = causal_document_mask(documents_BT)
    loaded, _ = load_model(tmp_path / "model")
    states = [hidden_states(one, tokens_BT, positions_BT, mask) for one in (model, loaded)]
    assert torch.equal(*states)
    config = (tmp_path / "model" / "config.json").read_text()
    json.loads(config, parse_constant=pytest.fail)
    if not model_format.names:
        stock = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        text_BT = tokens_BT[:, :9]
        assert torch.equal(stock(text_BT).logits, loaded(text_BT).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_layers": [3]}, r"attention_layers is \[3\]: expected some numbers of layers"),
        ({"attention_layers": [1, 1]}, "each once and in order"),
        ({"attention_layers": [0, 1, 2]}, "but not all"),
        ({"heads": 7}, "heads is 7, which does not divide twice the hidden_size 32"),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelSettings(**SHAPE | {"state_space": SHAPE["state_space"] | changes})


@pytest.mark.parametrize("size", [8, 20])
def test_a_state_holds_as_many_numbers_for_each_feature_as_the_settings_say(size: int) -> None:
    model = hybrid(state_space=SHAPE["state_space"] | {"state_size": size})
    mixer = decoder_layers(model)[0].get_submodule("mamba")
    features = 2 * SHAPE["hidden_size"]
    # A gate and a value for each feature, what is written and read for each number, a step a head.
    assert mixer.get_submodule("in_proj").out_features == 2 * features + 2 * size + 4
    assert model(torch.tensor([[1, 2, 3]]), use_cache=False).logits.isfinite().all()


def test_a_head_that_is_not_turned_in_halves_is_refused() -> None:
    with pytest.raises(ValueError, match="a multiple of 4 features per head"):
        ModelSettings(**SHAPE | {"hidden_size": 36})


def test_what_a_state_cannot_do_is_refused(
    batch: MakeBatch, tokenizer_folder: Path, tmp_path: Path
) -> None:
    model = hybrid()
    with pytest.raises(UserError, match=r"bamba has layers with a state: wrong guesses"):
        attach_future_heads(model, 2)
    blocks = DiffuseBlocks(block_size=4, token_shift="none", mask_token_id=3)
    with pytest.raises(UserError, match=r"filled in from both sides; set dlm.enabled to false"):
        blocks.apply(model)
    save_model(tmp_path / "base", model, ModelFormat(), tokenizer_folder)
    for prune in (PruneSettings(layers=2), PruneSettings(intermediate_size=16)):
        with pytest.raises(UserError, match=r"they can't be pruned; leave subln.prune out"):
            insert_subln_stage(
                SublnSettings(prune=prune), tmp_path / "base", [batch()], [batch()], tmp_path / "s"
            )


@pytest.mark.parametrize("kind", ["linear_attention", "hybrid", "conv"])
def test_a_state_that_would_pass_from_document_to_document_is_refused(
    tiny: Tiny, kind: str
) -> None:
    model = tiny()
    model.config.layer_types = [kind, "full_attention"]  # pyright: ignore
    with pytest.raises(UserError, match="would carry a document into the next one of its row"):
        reset_states(model)
