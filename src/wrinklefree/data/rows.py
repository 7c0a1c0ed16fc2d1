"""The files of the mixture folder: rows of T tokens, and the pieces of documents in them.

``<domain>.<split>.rows``: token ids [rows, T], little-endian uint16 or uint32, the tail of a row
filled with end of text. ``.pieces``: uint32, lengths of all pieces, row after row. ``.offsets``:
uint64 [rows + 1], where each row's pieces begin. ``token_bytes``: int32 [V]. ``mixture.json``: what
is needed to read them. Shapes: T tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wrinklefree.data.shards import map_file, read_index
from wrinklefree.errors import UserError

MIXTURE_FILE = "mixture.json"
TOKEN_BYTES_FILE = "token_bytes"
PIECE_DTYPE = np.dtype("<u4")
OFFSET_DTYPE = np.dtype("<u8")
TOKEN_BYTES_DTYPE = np.dtype("<i4")


@dataclass(frozen=True)
class Rows:
    """Memory-mapped rows of one domain and split."""

    path: Path
    tokens: np.ndarray
    """[rows, T]."""
    pieces: np.ndarray
    """uint32 [pieces]."""
    offsets: np.ndarray
    """uint64 [rows + 1]."""

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, row: int, vocabulary_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens, document ids, positions) of a row, int64 [T] each.

        Document ids number the row's pieces from 0 and are -1 on padding; positions start at 0 in
        every piece. Raises UserError for a token id beyond the vocabulary.
        """
        tokens_T = self.tokens[row].astype(np.int64)
        if tokens_T.max() >= vocabulary_size:
            raise UserError(
                f"{self.path} row {row} has token id {tokens_T.max()}, but the vocabulary has"
                f" {vocabulary_size} ids: the file was edited; run the mixture stage again"
            )
        lengths = self.pieces[int(self.offsets[row]) : int(self.offsets[row + 1])].astype(np.int64)
        padding = len(tokens_T) - int(lengths.sum())
        ids = np.append(np.arange(len(lengths)), -1)
        lengths = np.append(lengths, padding)
        starts = np.cumsum(lengths) - lengths
        positions_T = np.arange(len(tokens_T)) - np.repeat(starts, lengths)
        return tokens_T, np.repeat(ids, lengths), positions_T


@dataclass(frozen=True)
class DomainRows:
    """One domain of a mixture."""

    name: str
    weight: float
    """Share of the training tokens."""
    train: Rows
    train_tokens: int
    """Without padding."""
    held_out: Rows
    held_out_tokens: int
    """Without padding."""


@dataclass(frozen=True)
class Mixture:
    """A mixture folder whose files were checked."""

    sequence_length: int
    shuffle_buffer_size: int
    vocabulary_size: int
    end_of_text_id: int
    domains: list[DomainRows]
    """Sorted by name."""
    token_bytes_V: np.ndarray


def read_mixture(folder: Path) -> Mixture:
    """Map a mixture folder into memory; UserError naming the file that doesn't fit the others."""
    index = read_index(folder / MIXTURE_FILE)
    domains = []
    for entry in index["domains"]:
        train = _read_rows(folder, entry, "train", index)
        held_out = _read_rows(folder, entry, "held_out", index)
        domains.append(
            DomainRows(
                name=entry["name"],
                weight=entry["weight"],
                train=train,
                train_tokens=entry["splits"]["train"]["tokens"],
                held_out=held_out,
                held_out_tokens=entry["splits"]["held_out"]["tokens"],
            )
        )
    size = index["vocabulary_size"]
    return Mixture(
        sequence_length=index["sequence_length"],
        shuffle_buffer_size=index["shuffle_buffer_size"],
        vocabulary_size=size,
        end_of_text_id=index["end_of_text_id"],
        domains=domains,
        token_bytes_V=map_file(folder / TOKEN_BYTES_FILE, TOKEN_BYTES_DTYPE, size),
    )


def _read_rows(folder: Path, entry: dict[str, Any], split: str, index: dict[str, Any]) -> Rows:
    counts, length = entry["splits"][split], index["sequence_length"]
    stem = f"{entry['name']}.{split}"
    dtype = np.dtype(index["dtype"]).newbyteorder("<")
    path = folder / f"{stem}.rows"
    tokens = map_file(path, dtype, counts["rows"] * length).reshape(-1, length)
    pieces = map_file(folder / f"{stem}.pieces", PIECE_DTYPE, counts["pieces"])
    offsets = map_file(folder / f"{stem}.offsets", OFFSET_DTYPE, counts["rows"] + 1)
    rows = Rows(path, tokens, pieces, offsets)
    _check_pieces(folder / stem, rows, length)
    return rows


def _check_pieces(stem: Path, rows: Rows, sequence_length: int) -> None:
    bounds = rows.offsets.astype(np.int64)
    if bounds[0] != 0 or bounds[-1] != len(rows.pieces) or (np.diff(bounds) <= 0).any():
        raise UserError(
            f"{stem}.offsets does not divide the {len(rows.pieces)} pieces of {stem}.pieces into"
            f" {len(rows)} rows: it was edited; run the mixture stage again"
        )
    if not len(rows):
        return
    used = np.add.reduceat(rows.pieces.astype(np.int64), bounds[:-1])
    if (rows.pieces == 0).any() or (used > sequence_length).any():
        row = int(np.argmax(used > sequence_length))
        raise UserError(
            f"{stem}.pieces has an empty piece or more than {sequence_length} tokens in a row (row"
            f" {row}: {used[row]}): it was edited; run the mixture stage again"
        )
