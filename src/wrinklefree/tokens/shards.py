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

from wrinklefree.errors import UserError
from wrinklefree.schema.splits import SPLITS

INDEX_FILE = "tokens.json"
UINT16_IDS = 65_536
ENDS_DTYPE = np.dtype("<u8")
VALIDATION_TOKENS = 1 << 24


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
    """A token folder whose files were checked."""

    domain: str
    vocabulary_size: int
    end_of_text_id: int
    tokenizer: str | None
    """SHA-256 of the ``tokenizer.json`` that made the ids, where that is known."""
    splits: dict[str, TokenSplit]


def read_tokens(folder: Path) -> TokenFolder:
    """Map a token folder into memory and check every record of it.

    Raises UserError naming the file, and the record where there is one.
    """
    path = folder / INDEX_FILE
    index = read_index(path)
    try:
        dtype = np.dtype(index["dtype"]).newbyteorder("<")
        limit, end = int(index["vocabulary_size"]), int(index["end_of_text_id"])
        listed = {split: _listed(split, index["splits"][split]) for split in SPLITS}
        domain, tokenizer = index["domain"], index.get("tokenizer")
        if not isinstance(domain, str):
            raise ValueError(f"domain is {domain!r}")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path} does not describe a token folder ({type(error).__name__}: {error}); run the"
            " stage that makes it again"
        ) from error
    if dtype != token_dtype(limit):
        raise UserError(
            f"{path} has dtype {dtype.name}, expected {token_dtype(limit).name} for a vocabulary of"
            f" {limit} ids: it was edited; run the stage that makes it again"
        )
    splits = {
        split: TokenSplit(
            tuple(read_shard(shard_path(folder, split, c.shard), c, limit, end) for c in counts)
        )
        for split, counts in listed.items()
    }
    _check_all_listed(folder, listed)
    return TokenFolder(domain, limit, end, tokenizer, splits)


def _listed(split: str, entries: Sequence[dict[str, int]]) -> list[ShardCounts]:
    counts = [_counts(entry) for entry in entries]
    numbers = [shard.shard for shard in counts]
    if numbers != sorted(set(numbers)):
        raise ValueError(f"the {split} shards are {numbers}, expected each once, in order")
    return counts


def _counts(entry: dict[str, int]) -> ShardCounts:
    counts = ShardCounts(**entry)
    if wrong := [key for key, n in asdict(counts).items() if not isinstance(n, int) or n < 0]:
        raise ValueError(f"{wrong[0]} of a shard is {entry[wrong[0]]!r}")
    return counts


def _check_all_listed(folder: Path, listed: Mapping[str, Sequence[ShardCounts]]) -> None:
    known = {shard_path(folder, split, c.shard) for split, counts in listed.items() for c in counts}
    if strangers := sorted(set(folder.glob("*.ds")) - known):
        raise UserError(
            f"{strangers[0]} is not in {folder / INDEX_FILE}, which was edited or belongs to other"
            " shards; run the stage that makes it again"
        )


def read_shard(
    path: Path, counts: ShardCounts, vocabulary_size: int, end_of_text_id: int
) -> TokenShard:
    """Map one shard into memory and check every record of it, as ``read_tokens`` does."""
    tokens = map_file(path, token_dtype(vocabulary_size), counts.tokens)
    ends = map_file(index_path(path), ENDS_DTYPE, counts.documents)
    _check_ends(index_path(path), ends, len(tokens))
    _check_tokens(path, tokens, ends, vocabulary_size, end_of_text_id)
    return TokenShard(tokens, ends)


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


def _check_tokens(path: Path, tokens: np.ndarray, ends: np.ndarray, limit: int, end: int) -> None:
    found = 0
    for start in range(0, len(tokens), VALIDATION_TOKENS):
        chunk = tokens[start : start + VALIDATION_TOKENS]
        if chunk.max() >= limit:
            record = start + int(np.argmax(chunk >= limit))
            raise UserError(
                f"{path} record {record} is token id {tokens[record]}, but the vocabulary has"
                f" {limit} ids: the file was edited; run the stage that makes it again"
            )
        found += int(np.count_nonzero(chunk == end))
    last = ends.astype(np.int64) - 1
    if (wrong := np.flatnonzero(tokens[last] != end)).size:
        record = int(last[wrong[0]])
        raise UserError(
            f"{path} record {record} ends a document and is {tokens[record]}, expected end of text"
            f" ({end}); run the stage that makes it again"
        )
    if found != len(ends):
        raise UserError(
            f"{path} has {found} ends of text ({end}), expected one for each of the {len(ends)}"
            " documents; run the stage that makes it again"
        )
