from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.mixture.batch import Batch
from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.folder import load_model, save_model
from wrinklefree.models.forward import next_token_logits
from wrinklefree.models.layers import decoder_layers
from wrinklefree.models.losses import mean_next_token_loss
from wrinklefree.models.prune import (
    feature_importances,
    layer_importances,
    prune_features,
    prune_layers,
    pruned_like,
)
from wrinklefree.models.settings import PruneSettings, SublnSettings
from wrinklefree.models.subln_stage import insert_subln_stage
from wrinklefree.models.transforms import ModelFormat

Tiny = Callable[..., PreTrainedModel]
MakeBatch = Callable[..., Batch]
FAMILIES = ["llama", "qwen3"]


def logits(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    mask = causal_document_mask(batch.document_ids_BT)
    with torch.no_grad():
        return next_token_logits(model, batch.tokens_BT, batch.positions_BT, mask)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("idle", [(1, 3), (0, 4)])
def test_layers_that_do_nothing_are_left_out_and_nothing_changes(
    tiny: Tiny, batch: MakeBatch, family: str, idle: tuple[int, ...]
) -> None:
    model, one = tiny(family, num_hidden_layers=5), batch()
    for index in idle:
        layer = decoder_layers(model)[index]
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            torch.nn.init.zeros_(layer.get_parameter(f"{name}.weight"))
    found = layer_importances(model, [one])
    smaller = prune_layers(model, found, 3)
    assert [index for index, value in enumerate(found) if abs(value) < 1e-6] == list(idle)
    assert smaller.config.num_hidden_layers == len(decoder_layers(smaller)) == 3
    torch.testing.assert_close(logits(smaller, one), logits(model, one))


def test_layers_that_a_list_of_the_configuration_tells_apart_are_not_left_out(tiny: Tiny) -> None:
    model = tiny("smollm3", num_hidden_layers=4, no_rope_layer_interval=2, pad_token_id=0)
    with pytest.raises(UserError, match="no_rope_layers of the base's config.json has an item for"):
        prune_layers(model, [0.1, 0.3, 0.2, 0.4], 3)


def test_layers_keep_the_kind_that_they_had(tiny: Tiny) -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    model = tiny("qwen3", num_hidden_layers=4, layer_types=kinds, sliding_window=8)
    smaller = prune_layers(model, [0.1, 0.3, 0.2, 0.4], 2)
    assert smaller.config.layer_types == ["full_attention", "full_attention"]


@pytest.mark.parametrize("family", FAMILIES)
def test_features_that_add_nothing_are_left_out_and_nothing_changes(
    tiny: Tiny, batch: MakeBatch, family: str
) -> None:
    model, one = tiny(family), batch()
    idle = [torch.randperm(100)[:37] for _ in decoder_layers(model)]
    for index, (layer, features) in enumerate(zip(decoder_layers(model), idle, strict=True)):
        weight = layer.get_parameter(("mlp.down_proj.weight", "mlp.up_proj.weight")[index % 2])
        with torch.no_grad():
            (weight.T if index % 2 == 0 else weight)[features] = 0.0
    found = feature_importances(model, [one])
    smaller = prune_features(model, found, 63)
    for features, values in zip(idle, found, strict=True):
        assert sorted(features.tolist()) == [j for j, value in enumerate(values) if value == 0.0]
    assert smaller.config.intermediate_size == 63
    torch.testing.assert_close(logits(smaller, one), logits(model, one))


@torch.no_grad()
def test_importances_follow_their_definitions_and_padding_does_not_count(
    tiny: Tiny, batch: MakeBatch
) -> None:
    model, batches = tiny(), [batch(rows=2), batch(rows=3)]
    turned: list[list[float]] = [[], []]
    squares = [torch.zeros(100, dtype=torch.float64) for _ in range(2)]
    tokens = 0
    for one in batches:
        mask = causal_document_mask(one.document_ids_BT).dense()
        states = model.get_decoder()(
            input_ids=one.tokens_BT,
            position_ids=one.positions_BT,
            attention_mask=mask,
            output_hidden_states=True,
        ).hidden_states
        for row, position in (one.document_ids_BT >= 0).nonzero().tolist():
            tokens += 1
            first, second = states[0][row, position], states[1][row, position]
            turned[0].append(1 - F.cosine_similarity(first, second, dim=0).item())
        layer = decoder_layers(model)[0]
        inner: list[torch.Tensor] = []
        mlp = layer.get_submodule("mlp")
        handle = mlp.register_forward_pre_hook(lambda m, a, into=inner: into.append(a[0]))
        logits(model, one)
        handle.remove()
        gate, up = (layer.get_parameter(f"mlp.{name}_proj.weight") for name in ("gate", "up"))
        active = F.silu(inner[0] @ gate.T) * (inner[0] @ up.T)
        squares[0] += active[one.document_ids_BT >= 0].double().square().sum(0)
    assert layer_importances(model, batches)[0] == pytest.approx(sum(turned[0]) / tokens, abs=1e-6)
    down = decoder_layers(model)[0].get_parameter("mlp.down_proj.weight").double()
    expected = [
        (squares[0][j] / tokens).sqrt().item() * down[:, j].square().sum().sqrt().item()
        for j in range(100)
    ]
    assert feature_importances(model, batches)[0] == pytest.approx(expected, rel=1e-4)


def test_the_stage_prunes_first_and_the_smaller_model_is_a_student_like_any_other(
    tiny: Tiny, batch: MakeBatch, tokenizer_folder: Path, tmp_path: Path
) -> None:
    base, rows = tiny(num_hidden_layers=3), [batch(rows=4)]
    save_model(tmp_path / "base", base, ModelFormat(), tokenizer_folder)
    settings = SublnSettings(prune=PruneSettings(layers=2, intermediate_size=64))
    facts = insert_subln_stage(settings, tmp_path / "base", rows, rows, tmp_path / "subln")
    student, _ = load_model(tmp_path / "subln", "ternary")
    assert (student.config.num_hidden_layers, student.config.intermediate_size) == (2, 64)
    layers, features = facts["pruned"]["layers"], facts["pruned"]["intermediate_size"]
    assert layers["parameters_before"] == base.num_parameters()
    assert features["parameters_before"] == layers["parameters_after"]
    shallow = prune_layers(base, layer_importances(base, rows), 2)
    assert layers["loss_after"] == mean_next_token_loss(shallow, rows, 0.0)
    narrow = prune_features(shallow, feature_importances(shallow, rows), 64)
    assert features["loss_after"] == mean_next_token_loss(narrow, rows, 0.0)
    table = json.loads((tmp_path / "subln" / "importances.json").read_text())
    assert table["layers"] == pytest.approx(layer_importances(base, rows), rel=1e-5)
    assert [len(values) for values in table["intermediate_size"]] == [100, 100]
    again = pruned_like(base, tmp_path / "subln")
    assert again and all(map(torch.equal, again.parameters(), narrow.parameters()))
    plain = insert_subln_stage(SublnSettings(), tmp_path / "base", rows, rows, tmp_path / "plain")
    assert "pruned" not in plain and not (tmp_path / "plain" / "importances.json").exists()
    assert pruned_like(base, tmp_path / "plain") is None


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"intermediate_size": 16}, "the base has experts, whose features are not pruned"),
        ({"layers": 1}, "some layers of the base have experts and others have none"),
    ],
    ids=str,
)
def test_what_cannot_be_pruned_of_a_base_with_experts_is_refused(
    tiny: Tiny, batch: MakeBatch, tokenizer_folder: Path, tmp_path: Path, wanted: dict, message: str
) -> None:
    save_model(tmp_path / "base", tiny("qwen3_moe"), ModelFormat(), tokenizer_folder)
    settings = SublnSettings(prune=PruneSettings(**wanted))
    with pytest.raises(UserError, match=message):
        insert_subln_stage(settings, tmp_path / "base", [batch()], [batch()], tmp_path / "subln")


def test_layers_with_experts_can_be_left_out(tiny: Tiny, batch: MakeBatch) -> None:
    model, rows = tiny("qwen3_moe", num_hidden_layers=3, decoder_sparse_step=1), [batch()]
    shallow = prune_layers(model, layer_importances(model, rows), 2)
    names = {name for name, _ in shallow.named_parameters()}
    assert "model.layers.1.mlp.experts.down_proj" in names
    assert shallow.num_parameters() < model.num_parameters()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"layers": 3}, "subln.prune.layers is 3, but the base has 2"),
        ({"intermediate_size": 101}, "subln.prune.intermediate_size is 101, but the base has 100"),
    ],
    ids=str,
)
def test_more_than_there_is_cannot_remain(
    tiny: Tiny, batch: MakeBatch, tokenizer_folder: Path, tmp_path: Path, wanted: dict, message: str
) -> None:
    save_model(tmp_path / "base", tiny(), ModelFormat(), tokenizer_folder)
    settings = SublnSettings(prune=PruneSettings(**wanted))
    with pytest.raises(UserError, match=message):
        insert_subln_stage(settings, tmp_path / "base", [batch()], [batch()], tmp_path / "subln")


def test_as_many_ends_of_text_as_layers_are_no_list_by_layer(tiny: Tiny):
    model = tiny(num_hidden_layers=3, eos_token_id=[0, 1, 2])
    assert prune_layers(model, [0.1, 0.3, 0.2], 2).config.eos_token_id == [0, 1, 2]
