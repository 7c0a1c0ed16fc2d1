"""``tokenize``: the documents of one source as token files."""

from __future__ import annotations

import math
import os
import shutil
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import astuple
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from wrinklefree.schema.splits import SPLITS
from wrinklefree.text.documents.parquet import read_domain
from wrinklefree.tokens.encode import (
    Encoder,
    ShardPlan,
    ShardRecord,
    SplitRecord,
    encode_shard,
    finished_shard,
    plan_shards,
    read_rows,
    shard_folder,
)
from wrinklefree.tokens.encode_pool import Submit, encode_in_processes
from wrinklefree.tokens.settings import TokenizeSettings
from wrinklefree.tokens.shards import (
    ENDS_DTYPE,
    ShardCounts,
    index_path,
    map_file,
    shard_path,
    token_dtype,
    write_records,
    write_token_index,
)
from wrinklefree.tracking.cpus import available_cpus
from wrinklefree.tracking.progress import progress


def tokenize_source(
    settings: TokenizeSettings,
    cleaned: Path,
    tokenizer: Path,
    folder: Path,
    *,
    work: Path,
    max_tokens: int | None = None,
) -> dict[str, Any]:
    """Encode the documents of folder ``cleaned`` with the tokenizer of folder ``tokenizer``.

    Every document begins with what the tokenizer puts before a text, if anything, and ends in its
    end of text. Text itself can never produce either: special tokens written out in a document are
    encoded as ordinary characters. Memory holds a batch of text per process. Shards that an earlier
    run finished in ``work`` are kept.

    With ``max_tokens`` the training split ends with the document that reaches that many tokens,
    special ones included; fewer are a warning. Facts per split: tokens, documents and bytes per
    token, for which special ones don't count; ``shards``; with ``max_tokens`` the training
    documents left out and the tokens lacking.
    """
    encoder = Encoder(tokenizer, threads=available_cpus())
    source = _Source(cleaned, folder, work, encoder, max_tokens)
    plans = plan_shards(cleaned, settings.shard_megabytes)
    cores = available_cpus() if settings.processes == "all" else settings.processes
    processes = min(cores, len(plans))
    for left in work.glob(".*.partial-*"):
        shutil.rmtree(left)
    with ExitStack() as stack:
        if processes > 1:
            pool = encode_in_processes(tokenizer, cleaned, work, processes=processes)
            records = source.records(plans, stack.enter_context(pool), ahead=2 * processes)
            records = progress(records, f"tokenize {cleaned.name}", "shards", len(plans))
        else:
            records = source.records(plans, source.encode_here, ahead=1)
        for plan, record in zip(plans, records, strict=True):
            source.take(plan, record)
    return source.finish()


class _Source:
    """Puts shards into the artifact, in order, until there are tokens enough."""

    def __init__(
        self, cleaned: Path, folder: Path, work: Path, encoder: Encoder, max_tokens: int | None
    ) -> None:
        self._cleaned, self._folder, self._work, self._encoder = cleaned, folder, work, encoder
        self._max_tokens = max_tokens
        self._shards: dict[str, list[ShardCounts]] = {split: [] for split in SPLITS}
        self._totals = dict.fromkeys(SPLITS, SplitRecord())

    def records(
        self, plans: Sequence[ShardPlan], submit: Submit, ahead: int
    ) -> Iterator[ShardRecord]:
        """The record of every shard, in order, those behind it submitted already.

        Training documents of a shard are encoded unless it is certain that none is wanted.
        """
        waiting: deque[Callable[[], ShardRecord]] = deque()
        for plan in plans:
            if record := finished_shard(self._work, plan.shard):
                waiting.append(lambda record=record: record)
            else:
                waiting.append(submit(plan, self._lacking > 0))
            if len(waiting) == ahead:
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()

    def encode_here(self, plan: ShardPlan, train: bool) -> Callable[[], ShardRecord]:
        """A ``Submit`` that encodes in this process, on the library's own threads."""
        show = f"tokenize {self._cleaned.name} {plan.shard:05d}"
        return lambda: encode_shard(
            self._encoder, self._cleaned, plan, self._work, train=train, show=show
        )

    def take(self, plan: ShardPlan, record: ShardRecord) -> None:
        """Put a shard's files into the artifact, cut where there are training tokens enough."""
        for split in SPLITS:
            part = record.splits[split]
            keep = self._documents_to_keep(plan, part) if split == "train" else part.documents
            if keep < part.documents:
                part = self._place_first(plan, split, part, keep)
            elif keep:
                self._place(plan, split)
            self._shards[split].append(ShardCounts(plan.shard, part.tokens, part.documents))
            so_far = astuple(self._totals[split])
            self._totals[split] = SplitRecord(*map(sum, zip(so_far, astuple(part), strict=True)))

    def finish(self) -> dict[str, Any]:
        """Write ``tokens.json``; return the facts."""
        write_token_index(
            self._folder,
            domain=read_domain(self._cleaned),
            vocabulary_size=self._encoder.vocabulary_size,
            end_of_text_id=self._encoder.end_of_text_id,
            splits=self._shards,
            tokenizer=self._encoder.sha256,
        )
        totals, special = self._totals, len(self._encoder.begin_of_text) + 1
        facts: dict[str, Any] = {
            "tokens": {split: totals[split].tokens for split in SPLITS},
            "documents": {split: totals[split].documents for split in SPLITS},
            # Beginnings and ends of text stand for no bytes, so they don't count as tokens here.
            "bytes_per_token": {
                split: part.bytes / max(part.tokens - special * part.documents, 1)
                for split, part in totals.items()
            },
            "shards": {
                split: sum(counts.documents > 0 for counts in shards)
                for split, shards in self._shards.items()
            },
        }
        if self._max_tokens is not None:
            facts["dropped_max_tokens"] = totals["train"].left_out
            facts["lacking_tokens"] = max(0, round(self._lacking))
            if self._lacking > 0:
                warnings.warn(
                    f"{self._cleaned.name} has {totals['train'].tokens:,} training tokens, fewer"
                    f" than its max_tokens of {self._max_tokens:,}; if fetch stopped at max_tokens"
                    " (see stopped_by in its manifest), raise the source's fetch_bytes_per_token",
                    stacklevel=2,
                )
        return facts

    @property
    def _lacking(self) -> float:
        """Training tokens wanted in addition to those taken."""
        return (
            math.inf
            if self._max_tokens is None
            else self._max_tokens - self._totals["train"].tokens
        )

    def _documents_to_keep(self, plan: ShardPlan, part: SplitRecord) -> int:
        if self._lacking >= part.tokens:
            return part.documents
        if self._lacking <= 0:
            return 0
        path = shard_path(shard_folder(self._work, plan.shard), "train", plan.shard)
        ends = map_file(index_path(path), ENDS_DTYPE, part.documents)
        return int(np.searchsorted(ends, np.uint64(self._lacking))) + 1

    def _place(self, plan: ShardPlan, split: str) -> None:
        """Give the shard's files a place in the artifact; they stay in ``work`` too, for a kill."""
        source = shard_path(shard_folder(self._work, plan.shard), split, plan.shard)
        for path in (source, index_path(source)):
            try:
                os.link(path, self._folder / path.name)
            except OSError:  # another file system, or one without links
                shutil.copyfile(path, self._folder / path.name)

    def _place_first(
        self, plan: ShardPlan, split: str, part: SplitRecord, keep: int
    ) -> SplitRecord:
        """Write the first ``keep`` documents of a shard as its place in the artifact."""
        left_out = part.left_out + part.documents - keep
        if keep == 0:
            return SplitRecord(left_out=left_out)
        source = shard_path(shard_folder(self._work, plan.shard), split, plan.shard)
        target = shard_path(self._folder, split, plan.shard)
        ends = map_file(index_path(source), ENDS_DTYPE, part.documents)[:keep]
        dtype = token_dtype(self._encoder.vocabulary_size)
        tokens = map_file(source, dtype, part.tokens)[: int(ends[-1])]
        write_records(target, tokens)
        write_records(index_path(target), ends)
        rows = (row for row in read_rows(self._cleaned, plan) if row.split == split)
        size = sum(row.bytes for row in islice(rows, keep))
        return SplitRecord(len(tokens), keep, size, left_out)
