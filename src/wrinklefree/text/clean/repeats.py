"""Telling repeats by digests: in one process, or over tasks that each see a part.

A step that drops repeats asks, in order, whether the digest of each thing came before. Whoever
answers is a :data:`Repeats`: the set of all digests here, or, where tasks share the work, first a
recorder and in a second pass the answers that were found in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

DIGEST_BYTES = 16
Repeats = Callable[[bytes], bool]
"""Whether this digest came before; called once for each thing, in order."""

RECORD = np.dtype([("high", ">u8"), ("low", ">u8"), ("ordinal", "<u8")])
"""A digest in two halves, and the how-manieth of its task it was."""


def digest(text: str) -> bytes:
    """16 bytes that differ for different texts: BLAKE2b."""
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


class Seen:
    """Answers from a set of all digests: about 110 bytes of memory for each different one."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def __call__(self, key: bytes) -> bool:
        """Whether ``key`` came before."""
        before = len(self._digests)
        self._digests.add(key)
        return len(self._digests) == before


class Recorder:
    """Answers no, and keeps the digests in order: 16 bytes each."""

    def __init__(self) -> None:
        self._digests = bytearray()

    def __call__(self, key: bytes) -> bool:
        """Keep ``key``."""
        self._digests += key
        return False

    def buckets(self, count: int) -> list[np.ndarray]:
        """The digests as :data:`RECORD` arrays by bucket; equal digests share their bucket."""
        halves = np.frombuffer(self._digests, dtype=">u8").reshape(-1, 2)
        records = np.empty(len(halves), RECORD)
        records["high"], records["low"] = halves[:, 0], halves[:, 1]
        records["ordinal"] = np.arange(len(halves))
        bucket = records["high"] % np.uint64(count)
        return [records[bucket == number] for number in range(count)]


class Answers:
    """Answers from the ordinals of the repeats: yes to those, no to all others."""

    def __init__(self, repeated: np.ndarray) -> None:
        self._repeated = set(repeated.tolist())
        self._next = 0

    def __call__(self, key: bytes) -> bool:
        """Whether the next ordinal is one of the repeats."""
        self._next += 1
        return self._next - 1 in self._repeated


def repeats_of_bucket(parts: list[np.ndarray]) -> list[np.ndarray]:
    """The ordinals that repeat a digest of an earlier task or earlier in their own, by task.

    ``parts``: the :data:`RECORD` array of one bucket from every task, in order. Memory: 40 bytes
    per record.
    """
    records = np.concatenate(parts)
    task = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    # lexsort is stable: equal digests stay in the order of tasks and ordinals.
    order = np.lexsort((records["low"], records["high"]))
    ordered = records[order]
    repeated = np.zeros(len(records), dtype=bool)
    same = (ordered["high"][1:] == ordered["high"][:-1]) & (
        ordered["low"][1:] == ordered["low"][:-1]
    )
    repeated[order[1:][same]] = True
    return [records["ordinal"][repeated & (task == number)] for number in range(len(parts))]
