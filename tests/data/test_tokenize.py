from __future__ import annotations

from pathlib import Path

import pytest

from wrinklefree.data import tokenize as tokenize_module
from wrinklefree.data.generators.mathematics import document
from wrinklefree.data.shards import read_tokens
from wrinklefree.data.tokenize import tokenize_source
from wrinklefree.data.tokenizer import end_of_text_id, load_tokenizer


def decoded(folder: Path, tokenizer: Path, split: str) -> list[str]:
    part, decoder = read_tokens(folder).splits[split], load_tokenizer(tokenizer)
    texts, start = [], 0
    for end in part.ends.tolist():
        ids = part.tokens[start:end].tolist()
        assert ids[-1] == end_of_text_id(tokenizer)
        texts.append(decoder.decode(ids[:-1], skip_special_tokens=False))
        start = end
    return texts


def test_every_document_comes_back_from_its_tokens(
    raw, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize_module, "BATCH_CHARACTERS", 700)
    texts = {
        "train": [document(8, n) for n in range(23)] + [" \n", "naïve 🙂"],
        "held_out": ["held", "out "],
    }
    facts = tokenize_source(raw("maths", texts), tokenizer_folder, tmp_path)
    for split, expected in texts.items():
        assert decoded(tmp_path, tokenizer_folder, split) == expected
        assert facts["documents"][split] == len(expected)
    size = sum(len(text.encode()) for split in texts.values() for text in split)
    tokens = sum(facts["tokens"].values()) - sum(facts["documents"].values())
    assert facts["bytes_per_token"] == pytest.approx(size / tokens)
    assert read_tokens(tmp_path).domain == "maths"


def test_special_tokens_written_in_text_stay_text(
    raw, tokenizer_folder: Path, tmp_path: Path
) -> None:
    text = "before<|endoftext|>after |<MASK>|<|padding|>"
    tokenize_source(raw("d", {"train": [text]}), tokenizer_folder, tmp_path)
    ids = read_tokens(tmp_path).splits["train"].tokens.tolist()
    assert min(ids[:-1]) > 2
    assert decoded(tmp_path, tokenizer_folder, "train") == [text]
