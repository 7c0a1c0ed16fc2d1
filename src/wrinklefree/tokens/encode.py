"""One shard of a source: its documents read, encoded and written, and found again after a kill.

A finished shard is a folder named by its number: the token files and ``shard.json`` with their
digests. It gets its name when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from wrinklefree.schema.splits import SPLITS
from wrinklefree.text.documents.parquet import DOCUMENTS_FILE
from wrinklefree.tokens.shards import ShardCounts, ShardWriter
from wrinklefree.tokens.tokenizer import (
    TOKENIZER_FILE,
    begin_of_text,
    end_of_text_of,
    load_tokenizer,
    vocabulary_size_of,
)
from wrinklefree.tracking.files import sha256_of_file
from wrinklefree.tracking.progress import progress

RECORD_FILE = "shard.json"
MEGABYTE = 1_000_000
ROWS_AT_A_TIME = 256
BATCH_CHARACTERS = 1 << 18
"""Per thread. Larger batches leave the processor's cache, smaller ones leave threads waiting."""


@dataclass(frozen=True)
class ShardPlan:
    """A run of row groups of ``documents.parquet`` that becomes one shard."""

    shard: int
    row_groups: tuple[int, ...]
    documents: int
    """Documents of both splits."""


@dataclass(frozen=True)
class SplitRecord:
    """What a shard has of one split."""

    tokens: int = 0
    """Beginnings and ends of text included."""
    documents: int = 0
    bytes: int = 0
    """Bytes of the documents' text in UTF-8."""
    left_out: int = 0
    """Documents that were not encoded, since none of them is wanted any more."""


@dataclass(frozen=True)
class ShardRecord:
    """``shard.json``."""

    shard: int
    splits: dict[str, SplitRecord]
    files: dict[str, str]
    """SHA-256 by name."""


class Encoder:
    """A tokenizer folder, loaded; how many threads it runs is the process's affair."""

    def __init__(self, folder: Path, *, threads: int) -> None:
        self._tokenizer = load_tokenizer(folder)
        self.vocabulary_size = vocabulary_size_of(self._tokenizer)
        self.end_of_text_id = end_of_text_of(self._tokenizer, folder)
        self.begin_of_text = begin_of_text(self._tokenizer)
        self.sha256 = sha256_of_file(folder / TOKENIZER_FILE)
        self.batch_characters = BATCH_CHARACTERS * threads

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text from its beginning on, without an end of text."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [self.begin_of_text + encoding.ids for encoding in encodings]


def plan_shards(cleaned: Path, megabytes: int) -> list[ShardPlan]:
    """Runs of consecutive row groups, each closed by the group that brings it to ``megabytes``."""
    plans: list[ShardPlan] = []
    groups: list[int] = []
    size = documents = 0
    with pq.ParquetFile(cleaned / DOCUMENTS_FILE) as file:
        metadata = file.metadata
        column = file.schema_arrow.get_field_index("text")
        for group in range(metadata.num_row_groups):
            groups.append(group)
            size += metadata.row_group(group).column(column).total_uncompressed_size
            documents += metadata.row_group(group).num_rows
            if size >= megabytes * MEGABYTE or group == metadata.num_row_groups - 1:
                plans.append(ShardPlan(len(plans), tuple(groups), documents))
                groups, size, documents = [], 0, 0
    return plans


def encode_shard(
    encoder: Encoder, cleaned: Path, plan: ShardPlan, work: Path, *, train: bool, show: str = ""
) -> ShardRecord:
    """Write the shard's folder into ``work``; memory holds a batch of text.

    Parameters
    ----------
    train : whether to encode training documents, or only count them.
    show : show the progress through the documents under this description.
    """
    partial = work / f".{plan.shard:05d}.partial-{os.getpid()}"
    partial.mkdir(parents=True)
    rows = read_rows(cleaned, plan)
    if show:
        rows = progress(rows, show, "documents", plan.documents)
    try:
        with ExitStack() as stack:
            splits = {}
            for split in SPLITS:
                wanted = train or split != "train"
                splits[split] = _SplitEncoder(encoder, partial, split, plan.shard, wanted)
                stack.callback(splits[split].close)
            for row in rows:
                splits[row.split].add(row)
            records = {split: part.finish() for split, part in splits.items()}
        files = {path.name: sha256_of_file(path) for path in sorted(partial.iterdir())}
        record = ShardRecord(plan.shard, records, files)
        (partial / RECORD_FILE).write_text(json.dumps(asdict(record)), encoding="utf-8")
        partial.rename(shard_folder(work, plan.shard))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return record


class _SplitEncoder:
    """Collects documents of one split into batches and writes their tokens."""

    def __init__(
        self, encoder: Encoder, folder: Path, split: str, shard: int, wanted: bool
    ) -> None:
        self._encoder = encoder
        self._wanted = wanted
        self._writer = ShardWriter(
            folder,
            split,
            shard,
            vocabulary_size=encoder.vocabulary_size,
            end_of_text_id=encoder.end_of_text_id,
        )
        self._batch: list[str] = []
        self._characters = self._bytes = self._left_out = 0

    def add(self, row: Row) -> None:
        if not self._wanted:
            self._left_out += 1
            return
        self._batch.append(row.text)
        self._characters += len(row.text)
        self._bytes += row.bytes
        if self._characters >= self._encoder.batch_characters:
            self._flush()

    def finish(self) -> SplitRecord:
        self._flush()
        counts = self.close()
        return SplitRecord(counts.tokens, counts.documents, self._bytes, self._left_out)

    def close(self) -> ShardCounts:
        return self._writer.close()

    def _flush(self) -> None:
        self._writer.append(self._encoder.encode(self._batch))
        self._batch, self._characters = [], 0


def shard_folder(work: Path, shard: int) -> Path:
    """Where the finished shard lies."""
    return work / f"{shard:05d}"


def finished_shard(work: Path, shard: int) -> ShardRecord | None:
    """The record of a shard that an earlier run finished, its files checked.

    One whose files are not what it says is removed, with a warning, and counts as not finished.
    """
    folder = shard_folder(work, shard)
    if not folder.exists():
        return None
    try:
        content = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        splits = {split: SplitRecord(**record) for split, record in content["splits"].items()}
        record = ShardRecord(content["shard"], splits, content["files"])
        for name, sha256 in record.files.items():
            if sha256_of_file(folder / name) != sha256:
                raise ValueError(f"{name} has another content than its record says")
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{folder} is damaged ({error}): it is encoded again", stacklevel=2)
        shutil.rmtree(folder)
        return None
    return record


@dataclass(frozen=True)
class Row:
    """One row of ``documents.parquet``."""

    text: str
    bytes: int
    """Bytes of the text in UTF-8."""
    split: str


def read_rows(cleaned: Path, plan: ShardPlan) -> Iterator[Row]:
    """The documents of a shard, in order; memory holds a few pages of the file."""
    groups = list(plan.row_groups)
    with pq.ParquetFile(cleaned / DOCUMENTS_FILE) as file:
        for batch in file.iter_batches(
            ROWS_AT_A_TIME, groups, ["text", "split"], use_threads=False
        ):
            texts, splits = (batch.column(name).to_pylist() for name in ("text", "split"))
            sizes = pc.call_function("binary_length", [batch.column("text")]).to_pylist()
            yield from map(Row, texts, sizes, splits)
