"""The files of the mixture folder: rows of T tokens, and the pieces of documents in them.

``<domain>.<split>.rows``: token ids [rows, T], little-endian uint16 or uint32, the tail of a row
filled with end of text. ``.pieces``: records of ``PIECE_DTYPE``, row after row: from which document
a piece is, which of its tokens is the piece's first, and how many they are. ``.offsets``: uint64
[rows + 1], where each row's pieces begin. ``token_bytes``: int32 [V]. ``mixture.json``: what is
needed to read them.

Opening a folder touches none of these, so neither its time nor its memory grow with the corpus.
Shapes: T tokens of a row.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wrinklefree.tokens.shards import map_file

MIXTURE_FILE = "mixture.json"
TOKEN_BYTES_FILE = "token_bytes"
PIECE_DTYPE = np.dtype([("document", "<u8"), ("start", "<u8"), ("length", "<u4")])
"""Documents are numbered within domain and split, source after source in the order of names."""
OFFSET_DTYPE = np.dtype("<u8")
TOKEN_BYTES_DTYPE = np.dtype("<i4")


class Row(NamedTuple):
    """One row; all int64 [T]."""

    tokens_T: np.ndarray
    """Token ids; padding is end of text."""
    document_ids_T: np.ndarray
    """Number of the piece within the row, -1 on padding."""
    positions_T: np.ndarray
    """Position within the piece, from 0; on padding, too."""
    source_documents_T: np.ndarray
    """Number of the document within domain and split, -1 on padding."""
    source_positions_T: np.ndarray
    """Position within that document, -1 on padding."""


@dataclass(frozen=True)
class Rows:
    """Memory-mapped rows of one domain and split."""

    tokens: np.ndarray
    """[rows, T]."""
    pieces: np.ndarray
    """``PIECE_DTYPE`` [pieces]."""
    offsets: np.ndarray
    """uint64 [rows + 1]."""

    def __len__(self) -> int:
        return len(self.tokens)

    def pieces_of(self, row: int) -> np.ndarray:
        """``PIECE_DTYPE`` [pieces of the row]."""
        return self.pieces[int(self.offsets[row]) : int(self.offsets[row + 1])]

    def read(self, row: int) -> Row:
        """A row."""
        tokens_T = self.tokens[row].astype(np.int64)
        pieces = self.pieces_of(row)
        lengths = pieces["length"].astype(np.int64)
        ends = np.cumsum(lengths)
        used = int(ends[-1])
        # Padding is a piece of its own, so that positions count there as well.
        number_T = np.repeat(np.arange(len(lengths) + 1), np.append(lengths, len(tokens_T) - used))
        positions_T = np.arange(len(tokens_T)) - np.append(0, ends)[number_T]
        number_T[used:] = -1
        sources_T = pieces["document"].astype(np.int64)[number_T]
        source_positions_T = pieces["start"].astype(np.int64)[number_T] + positions_T
        sources_T[used:] = source_positions_T[used:] = -1
        return Row(tokens_T, number_T, positions_T, sources_T, source_positions_T)


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
    """A mixture folder."""

    sequence_length: int
    shuffle_buffer_size: int
    max_repetition: float
    """How often a training may read a domain."""
    vocabulary_size: int
    end_of_text_id: int
    domains: list[DomainRows]
    """Sorted by name."""
    token_bytes_V: np.ndarray


def read_mixture(folder: Path) -> Mixture:
    """Map a mixture folder into memory, whose files its manifest vouches for."""
    index = json.loads((folder / MIXTURE_FILE).read_text(encoding="utf-8"))
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
        max_repetition=index["max_repetition"],
        vocabulary_size=size,
        end_of_text_id=index["end_of_text_id"],
        domains=domains,
        token_bytes_V=map_file(folder / TOKEN_BYTES_FILE, TOKEN_BYTES_DTYPE, size),
    )


def _read_rows(folder: Path, entry: dict[str, Any], split: str, index: dict[str, Any]) -> Rows:
    counts, length = entry["splits"][split], index["sequence_length"]
    stem = f"{entry['name']}.{split}"
    dtype = np.dtype(index["dtype"]).newbyteorder("<")
    tokens = map_file(folder / f"{stem}.rows", dtype, counts["rows"] * length).reshape(-1, length)
    pieces = map_file(folder / f"{stem}.pieces", PIECE_DTYPE, counts["pieces"])
    offsets = map_file(folder / f"{stem}.offsets", OFFSET_DTYPE, counts["rows"] + 1)
    # As plain arrays: memmap's own indexing would take a third of a row's time.
    return Rows(np.asarray(tokens), np.asarray(pieces), np.asarray(offsets))
