"""Memory that a training on processors frees and wants again a moment later."""

from __future__ import annotations

import contextlib
import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of glibc's ``mallopt``, as malloc.h numbers them."""
VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")
"""Environment variables of glibc by which a user chooses what is kept."""


def keep_freed_memory() -> None:
    """Let the C library hand freed memory out again, in place of giving it back to the system.

    A step frees and wants hundreds of megabytes in large pieces. The system hands each out page by
    page and clears it first, which is a tenth of a step's time (docs/LOG.md). What is kept is
    never more than the process once had. Does nothing where the user has chosen by environment
    variable, and elsewhere than on glibc.
    """
    if any(name in os.environ for name in VARIABLES):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
