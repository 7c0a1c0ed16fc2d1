"""Processes that encode shards at the same time.

In one process only the tokenizer itself runs on all cores: reading the documents and turning ids
into arrays, a few percent of the work, go through Python one after the other, which is nothing on
two cores and a limit on dozens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from wrinklefree.errors import UserError
from wrinklefree.tokens.encode import (
    Encoder,
    ShardPlan,
    ShardRecord,
    encode_shard,
)
from wrinklefree.tracking.children import child_processes
from wrinklefree.tracking.cpus import available_cpus

Submit = Callable[[ShardPlan, bool], Callable[[], ShardRecord]]
"""Takes a shard and whether to encode its training documents; what it returns waits for it."""

_encoder: Encoder | None = None


@contextmanager
def encode_in_processes(
    tokenizer: Path, cleaned: Path, work: Path, *, processes: int
) -> Iterator[Submit]:
    """Start processes that write shards of ``cleaned`` into ``work``, and end them on leaving.

    When the block raises or this process is killed, they end at once, whatever they are doing.
    Raises UserError when one of them is killed.
    """
    threads = max(1, available_cpus() // processes)
    try:
        with child_processes(processes, _start, tokenizer, threads) as pool:

            def submit(plan: ShardPlan, train: bool) -> Callable[[], ShardRecord]:
                return pool.submit(_encode, cleaned, plan, work, train).result

            yield submit
    except BrokenProcessPool as error:
        raise UserError(
            f"a process that encodes {cleaned} was killed, perhaps for want of memory; lower"
            " tokenize.processes or free some memory, and run again: finished shards are kept"
        ) from error


def _start(tokenizer: Path, threads: int) -> None:
    global _encoder
    # Read when the library's threads start, which they have not yet done here.
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    _encoder = Encoder(tokenizer, threads=threads)


def _encode(cleaned: Path, plan: ShardPlan, work: Path, train: bool) -> ShardRecord:
    assert _encoder
    return encode_shard(_encoder, cleaned, plan, work, train=train)
