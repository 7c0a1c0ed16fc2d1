from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from wrinklefree.data import shards
from wrinklefree.data.shards import TokenWriter, read_tokens
from wrinklefree.errors import UserError

DOCUMENTS = [[5, 6, 7], [], [8], [9, 10]]
FLAT = [5, 6, 7, 0, 0, 8, 0, 9, 10, 0]


def write(folder: Path, vocabulary_size: int = 100) -> Path:
    writer = TokenWriter(folder, domain="d", vocabulary_size=vocabulary_size, end_of_text_id=0)
    writer.append("train", DOCUMENTS[:3])
    writer.append("train", DOCUMENTS[3:])
    writer.append("held_out", [[1]])
    assert writer.close() == {
        "train": {"tokens": 10, "documents": 4},
        "held_out": {"tokens": 2, "documents": 1},
    }
    return folder


@pytest.mark.parametrize(
    ("vocabulary_size", "dtype"), [(65_536, "<u2"), (65_537, "<u4"), (11, "<u2")]
)
def test_files_have_the_documented_layout(tmp_path: Path, vocabulary_size: int, dtype: str) -> None:
    write(tmp_path, vocabulary_size)
    assert (tmp_path / "train.tokens").read_bytes() == np.array(FLAT, dtype=dtype).tobytes()
    ends = np.array([4, 5, 7, 10], dtype="<u8")
    assert (tmp_path / "train.ends").read_bytes() == ends.tobytes()
    folder = read_tokens(tmp_path)
    assert (folder.domain, folder.vocabulary_size, folder.end_of_text_id) == (
        "d",
        vocabulary_size,
        0,
    )
    assert folder.splits["train"].tokens.tolist() == FLAT
    assert folder.splits["held_out"].ends.tolist() == [2]


def test_largest_id_of_a_16_bit_vocabulary_survives(tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path, domain="d", vocabulary_size=65_536, end_of_text_id=65_535)
    writer.append("train", [[65_534]])
    writer.close()
    assert read_tokens(tmp_path).splits["train"].tokens.tolist() == [65_534, 65_535]


def test_split_without_documents_is_readable(tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path, domain="d", vocabulary_size=10, end_of_text_id=0)
    writer.append("train", [[1]])
    writer.append("train", [])
    writer.close()
    assert len(read_tokens(tmp_path).splits["held_out"].tokens) == 0


def edit(path: Path, dtype: str, record: int, value: int) -> None:
    data = np.fromfile(path, dtype=dtype)
    data[record] = value
    data.tofile(path)


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: truncate(f / "train.tokens", 19), r"train\.tokens has 19 bytes, not a multiple"),
        (lambda f: truncate(f / "train.tokens", 18), r"train\.tokens has 9 records, expected 10"),
        (lambda f: truncate(f / "train.ends", 24), r"train\.ends has 3 records, expected 4"),
        (lambda f: (f / "held_out.ends").unlink(), r"held_out\.ends is missing"),
        (lambda f: truncate(f / "tokens.json", 30), r"cannot read .*tokens\.json"),
        (lambda f: edit(f / "train.ends", "<u8", 2, 5), r"train\.ends record 2 is 5, not greater"),
        (lambda f: edit(f / "train.ends", "<u8", 0, 0), r"train\.ends record 0 is 0, not greater"),
        (lambda f: edit(f / "train.ends", "<u8", 3, 11), r"train\.ends record 3 is 11, expected"),
        (
            lambda f: edit(f / "train.tokens", "<u2", 8, 100),
            r"train\.tokens record 8 is token id 100",
        ),
        (
            lambda f: edit(f / "train.tokens", "<u2", 6, 3),
            r"train\.tokens record 6 ends a document",
        ),
    ],
)
def test_damaged_folder_is_refused_with_file_and_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage, message: str
) -> None:
    monkeypatch.setattr(shards, "VALIDATION_TOKENS", 3)
    damage(write(tmp_path))
    with pytest.raises(UserError, match=message):
        read_tokens(tmp_path)


def test_index_that_disagrees_with_the_files_is_refused(tmp_path: Path) -> None:
    index = json.loads((write(tmp_path) / "tokens.json").read_text())
    index["vocabulary_size"] = 10
    (tmp_path / "tokens.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="record 8 is token id 10, but the vocabulary has 10 ids"):
        read_tokens(tmp_path)
