"""Processes that end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any


@contextmanager
def child_processes(
    count: int, initializer: Callable[..., None], *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """A pool of new interpreters, each of which begins with ``initializer(*arguments)``.

    When the block raises or this process is killed, they end at once, whatever they are doing. A
    pool of which one was killed raises BrokenProcessPool.
    """
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        count,
        mp_context=context,
        initializer=_start,
        initargs=(theirs, initializer, arguments),
    )
    try:
        yield pool
    except BaseException:
        ours.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        ours.close()
        theirs.close()


def _start(
    parent: Connection, initializer: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    # Control-C reaches every process of the terminal; the parent decides what follows from it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    initializer(*arguments)


def _end_with(parent: Connection) -> None:
    """Nothing is ever sent: the wait ends when the other end of the pipe is closed."""
    try:
        parent.recv()
    except EOFError:
        os._exit(1)
