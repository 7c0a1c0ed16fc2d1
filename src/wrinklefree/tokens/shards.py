"""The token folder: all documents of a source and split, end to end, in shards.

``<split>.<shard>.ds``: token ids, flat, little-endian uint16 (uint32 for more than 65,536 ids).
``<split>.<shard>.ds.index``: one little-endian uint64 per document, the index in the shard just
behind its last token. ``tokens.json``: what is needed to read them. datatrove reads the pairs of
files as well (its ``DatatroveFileDataset``).

Shards follow each other in the order of the documents. One without documents of a split has no
files of it.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from wrinklefree.schema.splits import SPLITS

INDEX_FILE = "tokens.json"
UINT16_IDS = 65_536
ENDS_DTYPE = np.dtype("<u8")


def token_dtype(vocabulary_size: int) -> np.dtype[Any]:
    """The narrowest of the two types that holds every id."""
    return np.dtype("<u2" if vocabulary_size <= UINT16_IDS else "<u4")


def shard_path(folder: Path, split: str, shard: int) -> Path:
    """The token ids of a shard; ``index_path`` of it has the ends of the documents."""
    return folder / f"{split}.{shard:05d}.ds"


def index_path(path: Path) -> Path:
    """The ends of the documents in the shard at ``path``."""
    return path.with_name(f"{path.name}.index")


@dataclass(frozen=True)
class ShardCounts:
    """What ``tokens.json`` says of one shard of one split."""

    shard: int
    tokens: int
    """Ends of text included."""
    documents: int


class ShardWriter:
    """Writes one shard of one split; there are no files until the first document."""

    def __init__(
        self, folder: Path, split: str, shard: int, *, vocabulary_size: int, end_of_text_id: int
    ) -> None:
        self._path = shard_path(folder, split, shard)
        self._shard = shard
        self._vocabulary_size, self._end_of_text_id = vocabulary_size, end_of_text_id
        self._files: tuple[BinaryIO, BinaryIO] | None = None
        self.tokens = 0
        self.documents = 0

    def append(self, documents: Sequence[list[int]]) -> None:
        """Add documents (token ids without the end of text, which is added here)."""
        if not documents:
            return
        if self._files is None:
            self._files = self._path.open("wb"), index_path(self._path).open("wb")
        # Four times as fast as numpy is with a list.
        flat = array("I")
        for document in documents:
            flat.fromlist(document)
            flat.append(self._end_of_text_id)
        ids = np.frombuffer(flat, dtype=np.uintc)
        assert ids.max() < self._vocabulary_size
        lengths = np.array([len(document) + 1 for document in documents], dtype=np.uint64)
        tokens, ends = self._files
        tokens.write(ids.astype(token_dtype(self._vocabulary_size)).data)
        ends.write((np.cumsum(lengths) + np.uint64(self.tokens)).astype(ENDS_DTYPE).data)
        self.tokens += len(ids)
        self.documents += len(documents)

    def close(self) -> ShardCounts:
        """Finish the files."""
        for file in self._files or ():
            file.close()
        return ShardCounts(self._shard, self.tokens, self.documents)


def write_token_index(
    folder: Path,
    *,
    domain: str,
    vocabulary_size: int,
    end_of_text_id: int,
    splits: Mapping[str, Sequence[ShardCounts]],
    tokenizer: str | None = None,
) -> None:
    """Write ``tokens.json``; shards without documents are left out.

    ``tokenizer``: SHA-256 of its ``tokenizer.json``, where that is known.
    """
    index = {
        "dtype": token_dtype(vocabulary_size).name,
        "domain": domain,
        "vocabulary_size": vocabulary_size,
        "end_of_text_id": end_of_text_id,
        "tokenizer": tokenizer,
        "splits": {
            split: [asdict(counts) for counts in splits[split] if counts.documents]
            for split in SPLITS
        },
    }
    (folder / INDEX_FILE).write_text(f"{json.dumps(index, indent=2)}\n", encoding="utf-8")


@dataclass(frozen=True)
class TokenShard:
    """Memory-mapped tokens of one shard of one split."""

    tokens: np.ndarray
    """uint16 or uint32 [tokens]."""
    ends: np.ndarray
    """uint64 [documents], cumulative from the start of the shard."""


@dataclass(frozen=True)
class TokenSplit:
    """One split of a source, in the order of its documents."""

    shards: tuple[TokenShard, ...]

    @cached_property
    def token_count(self) -> int:
        """Ends of text included."""
        return sum(len(shard.tokens) for shard in self.shards)

    @cached_property
    def document_count(self) -> int:
        """Documents of all shards."""
        return sum(len(shard.ends) for shard in self.shards)


@dataclass(frozen=True)
class TokenFolder:
    """The token folder of a source."""

    domain: str
    vocabulary_size: int
    end_of_text_id: int
    tokenizer: str | None
    """SHA-256 of the ``tokenizer.json`` that made the ids, where that is known."""
    splits: dict[str, TokenSplit]


def read_tokens(folder: Path) -> TokenFolder:
    """Map a token folder into memory, whose files its manifest vouches for."""
    index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    dtype = np.dtype(index["dtype"]).newbyteorder("<")
    splits = {
        split: TokenSplit(
            tuple(
                _map_shard(shard_path(folder, split, counts["shard"]), counts, dtype)
                for counts in index["splits"][split]
            )
        )
        for split in SPLITS
    }
    return TokenFolder(
        index["domain"],
        index["vocabulary_size"],
        index["end_of_text_id"],
        index["tokenizer"],
        splits,
    )


def _map_shard(path: Path, counts: Mapping[str, int], dtype: np.dtype[Any]) -> TokenShard:
    return TokenShard(
        map_file(path, dtype, counts["tokens"]),
        map_file(index_path(path), ENDS_DTYPE, counts["documents"]),
    )


def write_records(path: Path, records: np.ndarray) -> None:
    """Write an array's bytes, in its own byte order, as ``map_file`` reads them.

    Not by ``ndarray.tofile``, whose errors lack the system's number: a full disk would not be
    recognised as one.
    """
    with path.open("wb") as file:
        file.write(np.ascontiguousarray(records).data)


def map_file(path: Path, dtype: np.dtype[Any], count: int) -> np.ndarray:
    """Map the ``count`` records of a file read-only."""
    assert path.stat().st_size == count * dtype.itemsize, f"{path} has no {count} records"
    # An empty file can't be mapped.
    return np.memmap(path, dtype=dtype, mode="r") if count else np.empty(0, dtype=dtype)
