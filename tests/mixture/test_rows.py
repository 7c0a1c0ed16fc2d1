from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wrinklefree.mixture.build import build_mixture
from wrinklefree.mixture.rows import read_mixture
from wrinklefree.mixture.settings import MixtureSettings


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
        row = rows.read(number)
        assert all(column.dtype == np.int64 and column.shape == (16,) for column in row)
        for token, piece, position, source, place in zip(*(c.tolist() for c in row), strict=True):
            if piece < 0:
                assert (token, piece, source, place) == (0, -1, -1, -1)
                continue
            assert documents[source][place] == token
            assert place % 16 == position, "these documents are cut by the row only"
            seen.add((source, place))
    assert seen == {(n, place) for n, ids in enumerate(documents) for place in range(len(ids))}


def test_opening_reads_neither_rows_nor_pieces(mixture: Path) -> None:
    """Files of the right sizes are opened whatever is in them: time and memory stay flat."""
    path = mixture / "web.train.rows"
    path.write_bytes(b"\xff" * path.stat().st_size)
    pieces = mixture / "web.train.pieces"
    pieces.write_bytes(b"\0" * pieces.stat().st_size)
    rows = read_mixture(mixture).domains[0].train
    assert rows.tokens.min() == 65_535 and not rows.pieces["length"].any()
