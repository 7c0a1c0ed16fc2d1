from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.mixture import pack as pack_module
from wrinklefree.mixture.pack import SHORTEST_CUT, Packing, pack


def rows_of(packing: Packing) -> list[list[tuple[int, int, int]]]:
    """(document, start, length) of the pieces of each row."""
    pieces = list(
        zip(
            packing.document.tolist(),
            packing.start.tolist(),
            packing.length.tolist(),
            strict=True,
        )
    )
    return [pieces[a:b] for a, b in zip(packing.offsets[:-1], packing.offsets[1:], strict=True)]


def cut(lengths: list[int], sequence_length: int) -> list[tuple[int, int, int]]:
    return [
        (number, at, min(sequence_length, length - at))
        for number, length in enumerate(lengths)
        for at in range(0, length, sequence_length)
    ]


def naive_best_fit_decreasing(lengths: list[int], sequence_length: int) -> list[int]:
    """Room left in each row, rows searched one by one."""
    rows: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, room in enumerate(rows) if room >= length]
        if fitting:
            rows[min(fitting, key=lambda row: rows[row])] -= length
        else:
            rows.append(sequence_length - length)
    return sorted(rows)


LENGTHS = st.integers(1, 40).flatmap(
    lambda size: st.tuples(st.just(size), st.lists(st.integers(1, 3 * size), max_size=60))
)


@settings(max_examples=100, deadline=None)
@given(case=LENGTHS)
def test_documents_are_cut_by_the_row_only_and_rows_are_filled_as_by_search(
    case: tuple[int, list[int]],
) -> None:
    sequence_length, lengths = case
    packing = pack(np.array(lengths, dtype=np.int64), sequence_length)
    rows, pieces = rows_of(packing), cut(lengths, sequence_length)
    assert sorted(piece for row in rows for piece in row) == pieces
    assert all(row and row == sorted(row) for row in rows)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    room = [sequence_length - sum(length for *_, length in row) for row in rows]
    assert sorted(room) == naive_best_fit_decreasing([size for *_, size in pieces], sequence_length)


@settings(max_examples=100, deadline=None)
@given(case=LENGTHS, least_filled=st.floats(0.5, 1.0))
def test_rows_are_filled_as_asked_and_every_token_is_in_one_of_them(
    case: tuple[int, list[int]], least_filled: float
) -> None:
    sequence_length, lengths = case
    sizes = np.array(lengths, dtype=np.int64)
    whole = len(pack(sizes, sequence_length).offsets) - 1
    packing = pack(sizes, sequence_length, least_filled=least_filled)
    rows = rows_of(packing)
    assert all(row and row == sorted(row) for row in rows)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert all(sum(length for *_, length in row) <= sequence_length for row in rows)
    next_token = [0] * len(lengths)
    for document, start, length in sorted(piece for row in rows for piece in row):
        assert start == next_token[document] and length > 0
        next_token[document] += length
    assert next_token == lengths
    assert len(rows) <= whole
    if sizes.sum() >= least_filled * whole * sequence_length:
        assert np.array_equal(packing.offsets, pack(sizes, sequence_length).offsets)
    shortest = max(1, int(sequence_length * SHORTEST_CUT))
    pieces = np.bincount(packing.document, minlength=len(lengths))
    for document, _, length in (piece for row in rows for piece in row):
        if lengths[document] <= sequence_length and pieces[document] > 1:
            assert length >= shortest


def test_documents_a_little_shorter_than_a_row_are_cut_as_few_as_needed() -> None:
    """A hundred rows with room for 32 tokens each, and 100 documents that go two to a row."""
    lengths = np.array([224] * 100 + [128] * 100)
    assert len(pack(lengths, 256).offsets) - 1 == 150
    packing = pack(lengths, 256, least_filled=0.992)
    rows = len(packing.offsets) - 1
    assert rows == int(lengths.sum() / (0.992 * 256)) == 138
    assert lengths.sum() / (256 * rows) > 0.99
    cut_documents = np.flatnonzero(np.bincount(packing.document) > 1)
    # Twelve of the emptiest rows are given up, which hold 224 tokens each.
    assert len(cut_documents) == 12
    assert set(lengths[cut_documents]) == {224}


def test_the_first_pieces_of_a_row_give_it_its_number() -> None:
    packing = pack(np.array([5, 9, 3, 1, 10]), 10)
    assert rows_of(packing) == [[(0, 0, 5), (2, 0, 3)], [(1, 0, 9), (3, 0, 1)], [(4, 0, 10)]]


def test_no_documents_are_no_rows() -> None:
    packing = pack(np.empty(0, dtype=np.int64), 8, least_filled=0.9)
    assert (packing.offsets.tolist(), packing.length.tolist()) == ([0], [])


@pytest.mark.parametrize("least_filled", [0.0, 0.99])
def test_chunks_are_packed_apart_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, least_filled: float
) -> None:
    monkeypatch.setattr(pack_module, "PIECES_PER_CHUNK", 7)
    lengths = np.random.default_rng(5).integers(1, 12, size=61)
    packing = pack(lengths, 11, least_filled=least_filled)
    assert np.bincount(packing.document, packing.length).astype(int).tolist() == lengths.tolist()
    for row in rows_of(packing):
        assert sum(length for *_, length in row) <= 11
        assert len({document // 7 for document, *_ in row}) == 1


def test_realistic_text_fills_more_than_99_percent_at_ten_million_tokens_a_second() -> None:
    sizes = np.random.default_rng(1).lognormal(5.0, 1.0, 60_000).astype(np.int64) + 1
    start = time.process_time()
    packing = pack(sizes, 1024, least_filled=0.992)
    assert sizes.sum() / (time.process_time() - start) > 10e6
    assert sizes.sum() / (1024 * (len(packing.offsets) - 1)) > 0.99
