"""Locks between processes that vanish with the process that holds them.

Linux carries ``flock`` across hosts on NFS that has a lock service (all of NFSv4; not ``nolock`` or
``local_lock``) and on Lustre mounted with ``flock``. Elsewhere it holds between the processes of a
host, and Snakemake's own lock of the folder is what keeps two runs of the pipeline apart.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wrinklefree.errors import UserError

LOCKS = Path("work/locks")
"""Where a stage has its lock file, by its label."""
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def exclusive_lock(path: Path, *, busy: str | None = None) -> Iterator[None]:
    """Hold ``path`` as a lock file.

    Parameters
    ----------
    busy : what is being done by whoever holds the lock; then a held lock is an error at once.
        None: wait for it.

    Raises
    ------
    UserError : the lock is held and ``busy`` is given, which names the process, host and Slurm job
        that hold it; or the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(
                f"{busy} in another process ({holder});"
                " wait for it to end, or stop it and run again"
            ) from None
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            raise UserError(
                f"{path}: this file system has no locks ({error.strerror}), without which two"
                " stages could write the same files; mount it with flock (Lustre) or with a lock"
                " service (NFS), or put the project on another one"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(_identity())
        file.flush()
        yield


def _identity() -> str:
    """What a person needs to find this process."""
    job = os.environ.get("SLURM_JOB_ID")
    return f"pid {os.getpid()} on {socket.gethostname()}" + (f", Slurm job {job}" if job else "")
