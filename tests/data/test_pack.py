from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.data import pack as pack_module
from wrinklefree.data.pack import pack, split_documents


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
    lambda size: st.tuples(st.just(size), st.lists(st.integers(1, size), max_size=60))
)


@settings(max_examples=150, deadline=None)
@given(case=LENGTHS)
def test_no_piece_is_lost_or_repeated_and_rows_are_filled_as_by_search(
    case: tuple[int, list[int]],
) -> None:
    sequence_length, lengths = case
    packing = pack(np.array(lengths, dtype=np.int64), sequence_length)
    assert sorted(packing.order.tolist()) == list(range(len(lengths)))
    rows = [
        packing.order[a:b].tolist()
        for a, b in zip(packing.offsets[:-1], packing.offsets[1:], strict=True)
    ]
    assert all(row and row == sorted(row) for row in rows)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    room = [sequence_length - sum(lengths[piece] for piece in row) for row in rows]
    assert sorted(room) == naive_best_fit_decreasing(lengths, sequence_length)


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), max_size=20), sequence_length=st.integers(1, 20))
def test_pieces_of_a_document_cover_it_in_order(lengths: list[int], sequence_length: int) -> None:
    sizes = np.array(lengths, dtype=np.int64)
    starts = 1000 * np.arange(len(lengths))
    document, start, size = split_documents(starts, sizes, sequence_length)
    expected = [
        (number, 1000 * number + at, min(sequence_length, length - at))
        for number, length in enumerate(lengths)
        for at in range(0, length, sequence_length)
    ]
    assert list(zip(document, start, size, strict=True)) == expected


def test_chunks_are_packed_apart_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "PIECES_PER_CHUNK", 7)
    lengths = np.random.default_rng(5).integers(1, 12, size=61)
    packing = pack(lengths, 11)
    assert sorted(packing.order.tolist()) == list(range(61))
    for a, b in zip(packing.offsets[:-1], packing.offsets[1:], strict=True):
        assert lengths[packing.order[a:b]].sum() <= 11
        assert len(set(packing.order[a:b] // 7)) == 1


def test_realistic_text_fills_more_than_99_percent_at_ten_million_tokens_a_second() -> None:
    sizes = np.random.default_rng(1).lognormal(5.0, 1.0, 60_000).astype(np.int64) + 1
    _, _, lengths = split_documents(np.zeros_like(sizes), sizes, 1024)
    start = time.process_time()
    packing = pack(lengths, 1024)
    assert lengths.sum() / (time.process_time() - start) > 10e6
    assert lengths.sum() / (1024 * (len(packing.offsets) - 1)) > 0.99
