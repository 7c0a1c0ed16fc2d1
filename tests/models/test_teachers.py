from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from wrinklefree.downloads.local_files import digest_of_files, files_of_folder
from wrinklefree.errors import UserError
from wrinklefree.models.folder import load_model
from wrinklefree.models.teacher_settings import TeacherSettings
from wrinklefree.models.teachers import bring_teachers
from wrinklefree.tokens.tokenizer import load_tokenizer


@pytest.fixture
def given(save_tokenizer: Callable[[Path, list[str]], None], tmp_path: Path) -> Path:
    """A model with its tokenizer, as one saves it."""
    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "given")
    save_tokenizer(tmp_path / "given", ["<|endoftext|>"])
    return tmp_path / "given"


def teacher(folder: Path, sha256: str | None = None) -> TeacherSettings:
    sha256 = sha256 or digest_of_files(files_of_folder(folder))
    return TeacherSettings.model_validate(
        {"source": {"kind": "folder", "path": str(folder), "sha256": sha256}}
    )


def test_each_teacher_is_a_dense_model_with_its_tokenizer(given: Path, tmp_path: Path) -> None:
    named = {"one": teacher(given), "two": teacher(given)}
    facts = bring_teachers(named, tmp_path / "all", cache=tmp_path)
    for name in named:
        model, _ = load_model(tmp_path / "all" / name, "dense")
        assert facts["parameters"][name] == model.num_parameters()
        ids = load_tokenizer(tmp_path / "all" / name).encode("12").ids
        assert ids == load_tokenizer(given).encode("12").ids


def test_an_error_names_the_teacher(given: Path, tmp_path: Path) -> None:
    edited = {"one": teacher(given, "0" * 64)}
    with pytest.raises(UserError, match=r"teachers\.one\.source\.path .*a file was edited"):
        bring_teachers(edited, tmp_path / "all", cache=tmp_path)
