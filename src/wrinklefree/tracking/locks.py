"""Locks between processes that vanish with the process that holds them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wrinklefree.errors import UserError


@contextmanager
def exclusive_lock(path: Path, *, busy: str | None = None) -> Iterator[None]:
    """Hold ``path`` as a lock file.

    Parameters
    ----------
    busy : what is being done by whoever holds the lock; then a held lock is an error at once.
        None: wait for it.

    Raises
    ------
    UserError : the lock is held and ``busy`` is given; names the process that holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(
                f"{busy} in another process (pid {holder});"
                " wait for it to end, or stop it and run again"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield
