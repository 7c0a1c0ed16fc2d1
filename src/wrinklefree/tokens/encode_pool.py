"""Processes that encode shards at the same time.

In one process only the tokenizer itself runs on all cores: reading the documents and turning ids
into arrays, a few percent of the work, go through Python one after the other, which is nothing on
two cores and a limit on dozens.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from wrinklefree.errors import UserError
from wrinklefree.tokens.encode import (
    Encoder,
    ShardPlan,
    ShardRecord,
    encode_shard,
)
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
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    threads = max(1, available_cpus() // processes)
    pool = ProcessPoolExecutor(
        processes,
        mp_context=context,
        initializer=_start,
        initargs=(theirs, tokenizer, threads),
    )

    def submit(plan: ShardPlan, train: bool) -> Callable[[], ShardRecord]:
        return pool.submit(_encode, cleaned, plan, work, train).result

    try:
        yield submit
    except BrokenProcessPool as error:
        raise UserError(
            f"a process that encodes {cleaned} was killed, perhaps for want of memory; lower"
            " tokenize.processes or free some memory, and run again: finished shards are kept"
        ) from error
    except BaseException:
        ours.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        ours.close()
        theirs.close()


def _start(parent: Connection, tokenizer: Path, threads: int) -> None:
    global _encoder
    # Read when the library's threads start, which they have not yet done here.
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    # Control-C reaches every process of the terminal; the parent decides what follows from it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _encoder = Encoder(tokenizer, threads=threads)


def _end_with(parent: Connection) -> None:
    """Nothing is ever sent: the wait ends when the other end of the pipe is closed."""
    try:
        parent.recv()
    except EOFError:
        os._exit(1)


def _encode(cleaned: Path, plan: ShardPlan, work: Path, train: bool) -> ShardRecord:
    assert _encoder
    return encode_shard(_encoder, cleaned, plan, work, train=train)
