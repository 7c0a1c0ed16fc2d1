from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.models.folder import load_model, save_model, write_json
from wrinklefree.models.transforms import DiffuseBlocks, InsertSubln, Kind, ModelFormat, ternary
from wrinklefree.quant.settings import QuantizerSettings

Tiny = Callable[..., PreTrainedModel]
QUANTIZER = {"scale": "absmean", "granularity": "tensor", "group_size": 128}
TERNARY = ternary()


def logits_of(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40)[None]).logits


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dense", [True, False])
def test_a_loaded_model_is_the_saved_one(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path, family: str, tied: bool, dense: bool
) -> None:
    model = tiny(family, tie_word_embeddings=tied)
    model_format = ModelFormat() if dense else TERNARY
    model_format.apply(model)
    save_model(tmp_path / "model", model, model_format, tokenizer_folder)
    random_state = torch.get_rng_state()
    loaded, loaded_format = load_model(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert loaded_format == model_format
    assert not loaded.training
    assert loaded.config._attn_implementation == "sdpa"
    assert torch.equal(logits_of(loaded), logits_of(model))
    same = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert same == tied
    assert ("lm_head.weight" in load_file(tmp_path / "model" / "model.safetensors")) != tied


def test_a_dense_folder_loads_in_stock_transformers(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path
) -> None:
    model = tiny()
    save_model(tmp_path / "model", model, ModelFormat(), tokenizer_folder)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(logits_of(stock), logits_of(model))
    assert AutoTokenizer.from_pretrained(tmp_path / "model").eos_token == "<eos>"


def test_saving_again_or_what_was_loaded_gives_the_same_bytes(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path
) -> None:
    (tokenizer_folder / "manifest.json").write_text("{}", encoding="utf-8")
    model = tiny()
    TERNARY.apply(model)
    save_model(tmp_path / "a", model, TERNARY, tokenizer_folder)
    save_model(tmp_path / "b", load_model(tmp_path / "a")[0], TERNARY, tmp_path / "a")
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab"
    )
    assert first == second
    assert set(first) == {
        "config.json",
        "model.safetensors",
        "wrinklefree.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_diffusion_format_survives(tiny: Tiny, tokenizer_folder: Path, tmp_path: Path) -> None:
    model_format = ModelFormat().then(
        DiffuseBlocks(block_size=4, token_shift="clean_boundary", mask_token_id=3)
    )
    save_model(tmp_path / "model", tiny(), model_format, tokenizer_folder)
    assert load_model(tmp_path / "model")[1] == model_format


def damage_missing(path: Path) -> None:
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path)


def damage_unexpected(path: Path) -> None:
    save_file({**load_file(path), "extra.weight": torch.zeros(1)}, path)


def damage_shape(path: Path) -> None:
    save_file({**load_file(path), "model.norm.weight": torch.zeros(63)}, path)


def damage_dtype(path: Path) -> None:
    save_file({**load_file(path), "model.norm.weight": torch.zeros(64).half()}, path)


def damage_bytes(path: Path) -> None:
    path.write_bytes(b"not safetensors at all")


def damage_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_absent(path: Path) -> None:
    path.rename(path.with_name("pytorch_model.bin"))


@pytest.mark.parametrize(
    "damage",
    [
        damage_missing,
        damage_unexpected,
        damage_shape,
        damage_dtype,
        damage_bytes,
        damage_truncated,
        damage_absent,
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    save_model(tmp_path / "model", tiny(), ModelFormat(), tokenizer_folder)
    damage(tmp_path / "model" / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: "):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("name", ["config.json", "wrinklefree.json"])
@pytest.mark.parametrize("content", [None, "{", "[]", '{"model_type": "no such", "x": 1}'])
def test_malformed_descriptions_are_refused_by_name(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path, name: str, content: str | None
) -> None:
    save_model(tmp_path / "model", tiny(), ModelFormat(), tokenizer_folder)
    path = tmp_path / "model" / name
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=name):
        load_model(tmp_path / "model")


def test_a_dense_file_is_no_ternary_model(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path
) -> None:
    save_model(tmp_path / "model", tiny(), ModelFormat(), tokenizer_folder)
    write_json(tmp_path / "model" / "wrinklefree.json", TERNARY.model_dump(mode="json"))
    with pytest.raises(UserError, match=r"linear\.weight is missing"):
        load_model(tmp_path / "model")


SUBLN = {"name": "subln"}
BITLINEAR = {"name": "bitlinear", "quantizer": QUANTIZER}
BLOCKS = {"name": "block_diffusion", "block_size": 4, "token_shift": "none", "mask_token_id": 3}


def bitlinear(**changes: Any) -> dict[str, Any]:
    return {**BITLINEAR, "quantizer": {**QUANTIZER, **changes}}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (None, "transforms is missing: another version wrote it; run `make clean`, or run the st"),
        (False, "transforms is False"),
        ([{}], "transforms.0 is {}: Unable to extract tag"),
        ([{"name": "prune"}], "transforms.0 is .*'prune' .*: 'mixture_of_depths', 'subln', 'bitl"),
        ([SUBLN, SUBLN], "subln, subln: expected each at most once, in the order mixture_of_d"),
        ([BITLINEAR, SUBLN], "bitlinear, subln: expected each at most once, in the order mixture"),
        ([{**SUBLN, "sites": 1}], "transforms.0.subln.sites is 1"),
        (
            [{"name": "bitlinear", "quantizer": {"scale": "absmean", "granularity": "row"}}],
            "something is missing; expected .*group_size",
        ),
        ([{"name": "bitlinear"}], "something is missing; expected .*quantizer"),
        ([bitlinear(scale="mean")], "transforms.0.bitlinear.quantizer.scale is 'mean'"),
        ([bitlinear(group_size=32)], "transforms.0.bitlinear.quantizer.group_size is 32"),
        ([bitlinear(bits=2)], "transforms.0.bitlinear.quantizer.bits is 2"),
        ([{"name": "block_diffusion"}], "transforms.0.block_diffusion.block_size is"),
        ([{**BLOCKS, "block_size": "4"}], "transforms.0.block_diffusion.block_size is '4'"),
        ([{**BLOCKS, "block_size": 0}], "transforms.0.block_diffusion.block_size is 0"),
        ([{**BLOCKS, "mask_token_id": -1}], "transforms.0.block_diffusion.mask_token_id is -1"),
        ([{**BLOCKS, "mask_token_id": 97}], "block_diffusion.mask_token_id is 97, but"),
        ([{**BLOCKS, "token_shift": "left"}], "transforms.0.block_diffusion.token_shift is 'left'"),
        ([{**BLOCKS, "steps": 4}], "transforms.0.block_diffusion.steps is 4"),
    ],
)
def test_a_format_of_wrong_types_is_refused_with_key_and_value(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path, steps: Any, message: str
) -> None:
    save_model(tmp_path / "model", tiny(), ModelFormat(), tokenizer_folder)
    earlier = {"subln": False, "bitlinear": False, "diffusion": None}
    content = earlier if steps is None else {"transforms": steps}
    write_json(tmp_path / "model" / "wrinklefree.json", content)
    with pytest.raises(UserError, match=rf"wrinklefree\.json: .*{message}"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("model_format", "expected", "message"),
    [
        (ModelFormat(), "ternary", r"a dense model \(made by stage base\); expected an autoregre"),
        (TERNARY, "dense", "ternary layers .*; expected a dense model .made by stage base"),
        (TERNARY, "diffusion", "expected a block-diffusion model .* .made by stages dlm and"),
        (
            ternary().then(DiffuseBlocks(block_size=4, token_shift="none", mask_token_id=3)),
            "ternary",
            "a block-diffusion",
        ),
        (ModelFormat().then(InsertSubln()), "ternary", "a model that no stage makes, with subln;"),
    ],
)
def test_a_model_of_another_kind_is_refused_with_the_stage_that_makes_the_right_one(
    tiny: Tiny,
    tokenizer_folder: Path,
    tmp_path: Path,
    model_format: ModelFormat,
    expected: Kind,
    message: str,
) -> None:
    save_model(tmp_path / "model", tiny(), model_format, tokenizer_folder)
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / "model", expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_with_name_and_count(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path, value: float
) -> None:
    model = tiny()
    with torch.no_grad():
        model.get_submodule("model.layers.1.mlp.up_proj").weight[2, :3] = value
    save_model(tmp_path / "model", model, ModelFormat(), tokenizer_folder)
    with pytest.raises(
        UserError,
        match=r"model: 3 of 6400 values of model\.layers\.1\.mlp\.up_proj\.weight are NaN",
    ):
        load_model(tmp_path / "model")


def test_code_that_a_base_came_with_is_not_named_in_what_is_made_of_it(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path
) -> None:
    model = tiny()
    model.config.auto_map = {"AutoConfig": "theirs.Config"}
    save_model(tmp_path / "model", model, ModelFormat(), tokenizer_folder)
    assert "auto_map" not in (tmp_path / "model" / "config.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("scale", ["least_squares", "learned"])
@pytest.mark.parametrize("granularity", ["tensor", "head", "row", "group"])
def test_a_model_is_read_with_the_quantizer_that_it_was_written_with(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path, scale: str, granularity: str
) -> None:
    chosen = {"scale": scale, "granularity": granularity, "group_size": 64}
    quantizer = QuantizerSettings.model_validate(chosen)
    model = tiny(intermediate_size=128)
    model_format = ternary(quantizer)
    model_format.apply(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("alpha"):  # as if trained
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    save_model(tmp_path / "model", model, model_format, tokenizer_folder)
    loaded, loaded_format = load_model(tmp_path / "model")
    assert loaded_format == model_format
    assert torch.equal(logits_of(loaded), logits_of(model))
    written = json.loads((tmp_path / "model" / "wrinklefree.json").read_text(encoding="utf-8"))
    steps = [{"name": "subln"}, {"name": "bitlinear", "quantizer": chosen}]
    assert written == {"transforms": steps}
    save_model(tmp_path / "again", loaded, loaded_format, tokenizer_folder)
    for name in ("model.safetensors", "wrinklefree.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
