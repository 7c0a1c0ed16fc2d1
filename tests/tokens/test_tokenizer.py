from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from wrinklefree.errors import UserError
from wrinklefree.text.generators.mathematics import document
from wrinklefree.tokens import train_bpe
from wrinklefree.tokens.settings import BpeTokenizerSettings
from wrinklefree.tokens.tokenizer import (
    begin_of_text,
    end_of_text_id,
    load_tokenizer,
    read_tokenizer,
    text_ids,
    token_bytes,
    vocabulary_size,
)
from wrinklefree.tokens.train_bpe import train_tokenizer

FILES = ("tokenizer.json", "tokenizer_config.json")
TRAIN = """
import sys
from pathlib import Path
from wrinklefree.tokens.settings import BpeTokenizerSettings
from wrinklefree.tokens.train_bpe import train_tokenizer
s = BpeTokenizerSettings(kind="bpe", vocabulary_size=400, max_megabytes_per_source=1)
train_tokenizer(s, {"b": Path(sys.argv[1]), "a": Path(sys.argv[2])}, Path(sys.argv[3]))
"""


def bpe(vocabulary: int = 320, megabytes: int = 1) -> BpeTokenizerSettings:
    return BpeTokenizerSettings(
        kind="bpe", vocabulary_size=vocabulary, max_megabytes_per_source=megabytes
    )


def test_processes_with_and_without_threads_write_the_same_bytes(raw, tmp_path: Path) -> None:
    folders = [str(raw("maths", {"train": [document(s, n) for n in range(60)]})) for s in (1, 2)]
    outputs = []
    for run, parallel in enumerate(("true", "true", "false")):
        folder = tmp_path / str(run)
        folder.mkdir()
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": parallel}
        environment |= {"RAYON_NUM_THREADS": "3", "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", TRAIN, *folders, str(folder)]
        subprocess.run(command, env=environment, check=True)
        outputs.append([(folder / name).read_bytes() for name in FILES])
    assert outputs[0] == outputs[1] == outputs[2]


def test_transformers_reads_the_folder_alike(tokenizer_folder: Path) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(tokenizer_folder), load_tokenizer(tokenizer_folder)
    text = document(99, 1) + "\nnaïve 漢字 \t 🙂"
    assert theirs(text)["input_ids"] == ours.encode(text, add_special_tokens=False).ids
    assert theirs.decode(ours.encode(text).ids) == text
    assert len(theirs) == vocabulary_size(tokenizer_folder) == 320
    assert theirs.eos_token_id == end_of_text_id(tokenizer_folder)
    assert (theirs.eos_token, theirs.pad_token) == ("<|endoftext|>", "<|padding|>")
    assert "|<MASK>|" in theirs.all_special_tokens
    assert theirs.convert_tokens_to_ids("|<MASK>|") == 2


def test_a_text_begins_as_it_does_for_transformers(
    tokenizer_folder: Path, beginning_folder: Path
) -> None:
    for folder, first in ((tokenizer_folder, []), (beginning_folder, [1])):
        ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
        assert begin_of_text(ours) == first
        for text in ("", "a", "naïve 漢字 \t 🙂"):
            assert text_ids(ours, text) == theirs(text)["input_ids"]


def test_only_the_training_split_is_read(raw, tmp_path: Path) -> None:
    text = raw("d", {"train": [document(1, n) for n in range(60)], "held_out": ["zq" * 9000]})
    train_tokenizer(bpe(), {"d": text}, tmp_path)
    assert "zq" not in load_tokenizer(tmp_path).get_vocab()


def test_each_source_is_read_up_to_the_limit_from_all_of_its_length(
    raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_bpe, "CHUNK_CHARACTERS", 1000)
    early, late = "abcdefgh " * 150_000, "stuvwxyz " * 150_000
    text = raw("d", {"train": [early, late, document(1, 1)]})
    facts = train_tokenizer(bpe(), {"d": text}, tmp_path)
    assert 990_000 < facts["bytes_read"]["d"] <= 1_000_000
    vocabulary = load_tokenizer(tmp_path).get_vocab()
    assert {"Ġabcdefgh", "Ġstuvwxyz"} <= set(vocabulary)
    facts = train_tokenizer(bpe(megabytes=9), {"d": text}, tmp_path)
    assert facts["bytes_read"]["d"] == len(early) + len(late) + len(document(1, 1))


def test_text_too_small_for_the_vocabulary_is_an_error(raw, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"only enough .* 259 token ids.*vocabulary_size is 320"):
        train_tokenizer(bpe(), {"d": raw("d", {"train": ["a"]})}, tmp_path)


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=60))
def test_token_bytes_add_up_to_the_bytes_of_any_text(tokenizer_folder: Path, text: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    for each in (text, f"{text}<|endoftext|>|<MASK>|{text}"):
        encoding = tokenizer.encode(each, add_special_tokens=False)
        assert token_bytes(tokenizer)[encoding.ids].sum() == len(each.encode())


def test_special_tokens_stand_for_no_bytes_and_ordinary_added_ones_for_their_text(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tokenizer_folder, tmp_path / "copy")
    tokenizer = Tokenizer.from_file(str(copy / "tokenizer.json"))
    tokenizer.add_tokens(["<thínk>"])
    tokenizer.save(str(copy / "tokenizer.json"))
    size = token_bytes(load_tokenizer(copy))
    assert size.shape == (321,)
    assert size.dtype == np.int32
    assert size[:3].tolist() == [0, 0, 0]
    assert size[320] == len("<thínk>".encode())
    assert load_tokenizer(copy).encode("a<thínk>").ids[-1] == 320


def test_saved_truncation_and_padding_are_not_applied(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tokenizer_folder, tmp_path / "copy")
    tokenizer = Tokenizer.from_file(str(copy / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(copy / "tokenizer.json"))
    for text in ("a", document(1, 1)):
        expected = load_tokenizer(tokenizer_folder).encode(text).ids
        assert load_tokenizer(copy).encode(text).ids == expected


@pytest.mark.parametrize("place", ["string", "mapping", "special_tokens_map"])
def test_end_of_text_is_found_wherever_transformers_writes_it(
    tokenizer_folder: Path, tmp_path: Path, place: str
) -> None:
    copy = shutil.copytree(tokenizer_folder, tmp_path / "copy")
    name: object = "<|padding|>" if place == "string" else {"content": "<|padding|>"}
    config = {} if place == "special_tokens_map" else {"eos_token": name}
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    (copy / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|padding|>"}))
    assert end_of_text_id(copy) == 1


@pytest.mark.parametrize("eos", [None, "abc", "e", ["<|endoftext|>"], {"content": [1]}])
def test_end_of_text_that_text_could_contain_is_refused(
    tokenizer_folder: Path, tmp_path: Path, eos: Any
) -> None:
    copy = shutil.copytree(tokenizer_folder, tmp_path / "copy")
    (copy / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    with pytest.raises(UserError, match="not a special token"):
        end_of_text_id(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b'{"eos', "Unterminated"), (b"\xff", "can't decode"), (b"[1]", "a list, expected a map")],
)
def test_a_damaged_configuration_is_named(
    tokenizer_folder: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    copy = shutil.copytree(tokenizer_folder, tmp_path / "copy")
    (copy / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"tokenizer_config\.json is no JSON .*{message}"):
        end_of_text_id(copy)


def test_folder_without_a_byte_level_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a readable tokenizer"):
        load_tokenizer(tmp_path)
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="not a byte-level tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a readable tokenizer .*EOF.*put back the file"),
        ("{}", "is not a readable tokenizer .*Model missing"),
        ("no JSON", "is not a readable tokenizer"),
        ('{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "is a tokenizer without a token"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    for read in (read_tokenizer, load_tokenizer, vocabulary_size, end_of_text_id):
        with pytest.raises(UserError, match=rf"tokenizer\.json {message}"):
            read(tmp_path)
