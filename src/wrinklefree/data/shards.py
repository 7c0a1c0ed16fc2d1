"""The token file: all documents of a source and split, end to end.

``<split>.tokens``: token ids, flat, little-endian uint16 (uint32 for more than 65,536 ids).
``<split>.ends``: one little-endian uint64 per document, the index just behind its last token.
``tokens.json``: what is needed to read them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from wrinklefree.errors import UserError

INDEX_FILE = "tokens.json"
SPLITS = ("train", "held_out")
UINT16_IDS = 65_536
VALIDATION_TOKENS = 1 << 24


def token_dtype(vocabulary_size: int) -> np.dtype[Any]:
    """The narrowest of the two types that holds every id."""
    return np.dtype("<u2" if vocabulary_size <= UINT16_IDS else "<u4")


class TokenWriter:
    """Writes a token folder document by document; ``close`` writes ``tokens.json``."""

    def __init__(
        self, folder: Path, *, domain: str, vocabulary_size: int, end_of_text_id: int
    ) -> None:
        self._folder = folder
        self._dtype = token_dtype(vocabulary_size)
        self._vocabulary_size, self._end_of_text_id = vocabulary_size, end_of_text_id
        self._files: dict[str, tuple[BinaryIO, BinaryIO]] = {
            split: ((folder / f"{split}.tokens").open("wb"), (folder / f"{split}.ends").open("wb"))
            for split in SPLITS
        }
        self._counts = {split: {"tokens": 0, "documents": 0} for split in SPLITS}
        self._header = {
            "dtype": self._dtype.name,
            "domain": domain,
            "vocabulary_size": vocabulary_size,
            "end_of_text_id": end_of_text_id,
        }

    def append(self, split: str, documents: list[list[int]]) -> None:
        """Add documents (token ids without the end of text, which is added here)."""
        tokens, ends = self._files[split]
        counts = self._counts[split]
        lengths = np.array([len(ids) + 1 for ids in documents], dtype=np.uint64)
        end = (self._end_of_text_id,)
        ended = chain.from_iterable(chain(ids, end) for ids in documents)
        flat = np.fromiter(ended, dtype=np.int64, count=int(lengths.sum()))
        assert flat.size == 0 or 0 <= flat.min() <= flat.max() < self._vocabulary_size
        tokens.write(flat.astype(self._dtype).tobytes())
        ends.write((np.cumsum(lengths) + np.uint64(counts["tokens"])).astype("<u8").tobytes())
        counts["tokens"] += int(lengths.sum())
        counts["documents"] += len(documents)

    def close(self) -> dict[str, dict[str, int]]:
        """Finish the folder; the numbers of tokens and documents of each split."""
        for files in self._files.values():
            for file in files:
                file.close()
        text = json.dumps({**self._header, "splits": self._counts}, indent=2)
        (self._folder / INDEX_FILE).write_text(f"{text}\n", encoding="utf-8")
        return self._counts


@dataclass(frozen=True)
class TokenSplit:
    """Memory-mapped tokens of one split."""

    tokens: np.ndarray
    """uint16 or uint32 [tokens]."""
    ends: np.ndarray
    """uint64 [documents], cumulative."""


@dataclass(frozen=True)
class TokenFolder:
    """A token folder whose files were checked."""

    domain: str
    vocabulary_size: int
    end_of_text_id: int
    splits: dict[str, TokenSplit]


def read_tokens(folder: Path) -> TokenFolder:
    """Map a token folder into memory and check every record of it.

    Raises UserError naming the file, and the record where there is one.
    """
    header = read_index(folder / INDEX_FILE)
    dtype = np.dtype(header["dtype"]).newbyteorder("<")
    splits: dict[str, TokenSplit] = {}
    for split in SPLITS:
        counts = header["splits"][split]
        tokens = map_file(folder / f"{split}.tokens", dtype, counts["tokens"])
        ends = map_file(folder / f"{split}.ends", np.dtype("<u8"), counts["documents"])
        _check_ends(folder / f"{split}.ends", ends, len(tokens))
        _check_tokens(folder / f"{split}.tokens", tokens, ends, header)
        splits[split] = TokenSplit(tokens, ends)
    return TokenFolder(
        header["domain"], header["vocabulary_size"], header["end_of_text_id"], splits
    )


def read_index(path: Path) -> dict[str, Any]:
    """The JSON file that describes a folder's binary files."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {path}: {error}; run the stage that makes it again"
        ) from error


def write_records(path: Path, records: np.ndarray) -> None:
    """Write an array's bytes, in its own byte order, as ``map_file`` reads them.

    Not by ``ndarray.tofile``, whose errors lack the system's number: a full disk would not be
    recognised as one.
    """
    with path.open("wb") as file:
        file.write(np.ascontiguousarray(records).data)


def map_file(path: Path, dtype: np.dtype[Any], count: int) -> np.ndarray:
    """Map ``count`` records read-only; UserError if the file has another size."""
    if not path.is_file():
        raise UserError(f"{path} is missing; run the stage that makes it again")
    size = path.stat().st_size
    if size % dtype.itemsize:
        raise UserError(
            f"{path} has {size} bytes, not a multiple of the {dtype.itemsize} bytes of a record"
            f" ({dtype.name}): it is truncated; run the stage that makes it again"
        )
    if size != count * dtype.itemsize:
        raise UserError(
            f"{path} has {size // dtype.itemsize} records, expected {count}: it was truncated or"
            " edited; run the stage that makes it again"
        )
    # An empty file can't be mapped.
    return np.memmap(path, dtype=dtype, mode="r") if count else np.empty(0, dtype=dtype)


def _check_ends(path: Path, ends: np.ndarray, tokens: int) -> None:
    previous = np.concatenate([np.zeros(1, dtype=ends.dtype), ends[:-1]]) if len(ends) else ends
    if (wrong := np.flatnonzero(ends <= previous)).size:
        record = int(wrong[0])
        raise UserError(
            f"{path} record {record} is {ends[record]}, not greater than {previous[record]} before"
            " it: the file was edited; run the stage that makes it again"
        )
    last = int(ends[-1]) if len(ends) else 0
    if last != tokens:
        raise UserError(
            f"{path} record {len(ends) - 1} is {last}, expected the number of tokens, {tokens};"
            " run the stage that makes it again"
        )


def _check_tokens(path: Path, tokens: np.ndarray, ends: np.ndarray, header: dict[str, Any]) -> None:
    limit, end = header["vocabulary_size"], header["end_of_text_id"]
    for start in range(0, len(tokens), VALIDATION_TOKENS):
        chunk = tokens[start : start + VALIDATION_TOKENS]
        if chunk.max() >= limit:
            record = start + int(np.argmax(chunk >= limit))
            raise UserError(
                f"{path} record {record} is token id {tokens[record]}, but the vocabulary has"
                f" {limit} ids: the file was edited; run the stage that makes it again"
            )
    last = ends.astype(np.int64) - 1
    if (wrong := np.flatnonzero(tokens[last] != end)).size:
        record = int(last[wrong[0]])
        raise UserError(
            f"{path} record {record} ends a document and is {tokens[record]}, expected end of text"
            f" ({end}); run the stage that makes it again"
        )
