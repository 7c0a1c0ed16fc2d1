"""Packing pieces of documents into rows of T tokens.

Best-fit decreasing: the longest piece first, each into the fullest row that still holds it. Rows
are kept by the room they have left, and a bit mask says which amounts of room occur, so the best
row is found by one bit operation whatever the number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PIECES_PER_CHUNK = 1 << 20


@dataclass(frozen=True)
class Packing:
    """Which pieces are in which row."""

    order: np.ndarray
    """int64 [pieces]: every piece index once, row after row, ascending within a row."""
    offsets: np.ndarray
    """int64 [rows + 1]: row r has the pieces order[offsets[r]:offsets[r + 1]]."""


def split_documents(
    starts: np.ndarray, lengths: np.ndarray, sequence_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut documents into pieces of at most T tokens.

    starts, lengths: int64 [documents]. Returns (document, start, length) of each piece, int64
    [pieces], in the order of the documents; only a document's last piece is shorter than T.
    """
    pieces = -(-lengths // sequence_length)
    document = np.repeat(np.arange(len(lengths)), pieces)
    first = np.cumsum(pieces) - pieces
    before = (np.arange(len(document)) - first[document]) * sequence_length
    piece_lengths = np.minimum(lengths[document] - before, sequence_length)
    return document, starts[document] + before, piece_lengths


def pack(lengths: np.ndarray, sequence_length: int) -> Packing:
    """Pack pieces (int64 [pieces], each 1..T tokens) into rows of T tokens.

    Rows are numbered by their first piece, so that the order of the rows follows the order of the
    documents. Pieces further apart than ``PIECES_PER_CHUNK`` don't share a row: memory is bounded.
    """
    assert len(lengths) == 0 or 1 <= lengths.min() <= lengths.max() <= sequence_length
    row_of_piece = np.empty(len(lengths), dtype=np.int64)
    rows = 0
    for start in range(0, len(lengths), PIECES_PER_CHUNK):
        chunk = _best_fit_decreasing(lengths[start : start + PIECES_PER_CHUNK], sequence_length)
        row_of_piece[start : start + len(chunk)] = chunk + rows
        rows += int(chunk.max()) + 1
    _, first_piece, row_of_piece = np.unique(row_of_piece, return_index=True, return_inverse=True)
    rank = np.empty(rows, dtype=np.int64)
    rank[np.argsort(first_piece)] = np.arange(rows)
    row_of_piece = rank[row_of_piece]
    order = np.argsort(row_of_piece, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row_of_piece, minlength=rows))])
    return Packing(order.astype(np.int64), offsets.astype(np.int64))


def _best_fit_decreasing(lengths: np.ndarray, sequence_length: int) -> np.ndarray:
    """Row of each piece, int64 [pieces], in the order in which rows were opened."""
    order = np.argsort(-lengths, kind="stable")
    rows_with_room: list[list[int]] = [[] for _ in range(sequence_length + 1)]
    occurring_room = 0  # bit r: some row has room for r tokens
    assigned: list[int] = []
    rows = 0
    for length in lengths[order].tolist():
        enough = occurring_room >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                occurring_room ^= 1 << room
        else:
            room, row = sequence_length, rows
            rows += 1
        if left := room - length:
            rows_with_room[left].append(row)
            occurring_room |= 1 << left
        assigned.append(row)
    row_of_piece = np.empty(len(lengths), dtype=np.int64)
    row_of_piece[order] = assigned
    return row_of_piece
