from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wrinklefree.errors import UserError
from wrinklefree.mixture.build import build_mixture
from wrinklefree.mixture.rows import PIECE_DTYPE, read_mixture
from wrinklefree.mixture.settings import MixtureSettings

VOCABULARY = 320


@pytest.fixture
def mixture(token_folder, tokenizer_folder: Path, tmp_path: Path) -> Path:
    """Rows of 16 tokens; documents 0 and 2 are longer than a row."""
    documents = [[5] * 19, [6] * 3, [7] * 40, [8] * 6]
    tokens = {"a": token_folder("web", {"train": documents, "held_out": [[9]]})}
    settings = MixtureSettings(sequence_length=16, shuffle_buffer_size=4, weights={"web": 1.0})
    folder = tmp_path / "mixture"
    folder.mkdir()
    build_mixture(settings, tokens, tokenizer_folder, folder)
    return folder


def test_a_row_says_of_every_token_which_of_which_document_it_is(mixture: Path) -> None:
    rows = read_mixture(mixture).domains[0].train
    documents = [[5] * 19 + [0], [6] * 3 + [0], [7] * 40 + [0], [8] * 6 + [0]]
    seen: set[tuple[int, int]] = set()
    for number in range(len(rows)):
        row = rows.read(number, VOCABULARY)
        assert all(column.dtype == np.int64 and column.shape == (16,) for column in row)
        for token, piece, position, source, place in zip(*(c.tolist() for c in row), strict=True):
            if piece < 0:
                assert (token, piece, source, place) == (0, -1, -1, -1)
                continue
            assert documents[source][place] == token
            assert place % 16 == position, "these documents are cut by the row only"
            seen.add((source, place))
    assert seen == {(n, place) for n, ids in enumerate(documents) for place in range(len(ids))}


def edit(path: Path, dtype: np.dtype | str, change: Callable[[np.ndarray], None]) -> None:
    data = np.fromfile(path, dtype)
    change(data)
    data.tofile(path)


def set_length(record: int, length: int) -> Callable[[np.ndarray], None]:
    def change(pieces: np.ndarray) -> None:
        pieces["length"][record] = length

    return change


def put(record: int, value: int) -> Callable[[np.ndarray], None]:
    def change(records: np.ndarray) -> None:
        records[record] = value

    return change


def read_all(mixture: Path) -> None:
    rows = read_mixture(mixture).domains[0].train
    for number in range(len(rows)):
        rows.read(number, VOCABULARY)


@pytest.mark.parametrize(
    ("name", "dtype", "change", "message"),
    [
        ("pieces", PIECE_DTYPE, set_length(1, 0), r"web\.train\.pieces has an empty piece .*row 1"),
        ("pieces", PIECE_DTYPE, set_length(0, 17), r"too many tokens in row 0 \(17 of 16\)"),
        ("offsets", "<u8", put(1, 0), r"web\.train\.offsets gives row 0 the pieces 0 to 0 of 7"),
        ("offsets", "<u8", put(2, 2**40), r"offsets gives row 1 the pieces 1 to 1099511627776"),
        ("offsets", "<u8", put(0, 1), r"web\.train\.offsets runs from 1 to 7, expected 0 to 7"),
        ("offsets", "<u8", put(-1, 6), r"web\.train\.offsets runs from 0 to 6, expected 0 to 7"),
        ("rows", "<u2", put(2 * 16 + 3, 320), r"web\.train\.rows row 2 has token id 320"),
    ],
)
def test_what_was_edited_is_named_with_its_row(
    mixture: Path, name: str, dtype: np.dtype | str, change: Callable, message: str
) -> None:
    read_all(mixture)
    edit(mixture / f"web.train.{name}", dtype, change)
    with pytest.raises(UserError, match=message):
        read_all(mixture)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.pop("max_repetition"), r"mixture\.json does not describe .*max_repet"),
        (lambda index: index.update(domains={"web": 1}), r"mixture\.json does not describe"),
        (lambda index: index.update(dtype="words"), r"mixture\.json does not describe"),
        (lambda index: index.update(dtype="int16"), r"dtype is 'int16' for 320 ids"),
        (lambda index: index.update(shuffle_buffer_size=0), "shuffle_buffer_size is 0"),
        (lambda index: index.update(max_repetition="4"), "max_repetition is '4'"),
        (lambda index: index.update(domains=[]), r"the domains are \[\], expected each once"),
        (
            lambda index: index["domains"].append(index["domains"][0]),
            r"the domains are \['web', 'w",
        ),
        (lambda index: index["domains"][0].update(weight=float("nan")), "web has weight nan"),
        (
            lambda index: index["domains"][0]["splits"]["train"].update(tokens=0),
            r"web\.train has 0 tokens in \d rows",
        ),
    ],
)
def test_an_index_that_is_none_is_named(mixture: Path, change: Callable, message: str) -> None:
    path = mixture / "mixture.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=message):
        read_mixture(mixture)


def test_opening_reads_neither_rows_nor_pieces(mixture: Path) -> None:
    """Files of the right sizes are opened whatever is in them: time and memory stay flat."""
    for name in ("rows", "pieces"):
        path = mixture / f"web.train.{name}"
        path.write_bytes(b"\xff" * path.stat().st_size)
    rows = read_mixture(mixture).domains[0].train
    with pytest.raises(UserError, match="row 0 has token id 65535"):
        rows.read(0, VOCABULARY)
