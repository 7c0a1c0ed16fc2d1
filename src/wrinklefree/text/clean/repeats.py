"""Telling repeats by digests: in one process, or over tasks that each see a part.

A step that drops repeats asks, in order, whether the digest of each thing came before. Whoever
answers is a :data:`Repeats`: the set of all digests here, or, where tasks share the work, first a
recorder and in a second pass the answers that were found in between.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np

DIGEST_BYTES = 16
Repeats = Callable[[bytes], bool]
"""Whether this digest came before; called once for each thing, in order."""

RECORD = np.dtype([("digest", f"S{DIGEST_BYTES}"), ("ordinal", "<u8")])
"""A digest, and the how-manieth of its task it was. numpy ignores zeros at the end of a digest;
of equally long ones equal remain those that are equal."""


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

    def save(self, folder: Path, task: int, tasks: int) -> None:
        """Leave a file for each of ``tasks`` buckets; equal digests share their bucket."""
        halves = np.frombuffer(self._digests, "<u8")
        bucket = halves[::2] % np.uint64(tasks)
        records = np.empty(len(bucket), RECORD)
        records["digest"] = np.frombuffer(self._digests, RECORD["digest"])
        records["ordinal"] = np.arange(len(records))
        for number in range(tasks):
            file = folder / "digests" / f"{number:05d}" / f"{task:05d}.npy"
            save_array(file, records[bucket == number])


def find_repeats(folder: Path, _data: object, bucket: int, tasks: int) -> None:
    """Leave for each task the ordinals of its repeats in a bucket that all recorders have saved.

    As a step of datatrove's there is a task for each bucket. Memory: 100 bytes per digest.
    """
    files = [folder / "digests" / f"{bucket:05d}" / f"{task:05d}.npy" for task in range(tasks)]
    parts = [np.load(file) for file in files]
    records = np.concatenate(parts)
    repeated = np.ones(len(records), dtype=bool)
    repeated[np.unique(records["digest"], return_index=True)[1]] = False
    ends = np.cumsum([len(part) for part in parts])
    for task, (part, which) in enumerate(zip(parts, np.split(repeated, ends[:-1]), strict=True)):
        file = folder / "repeats" / f"{task:05d}" / f"{bucket:05d}.npy"
        save_array(file, part["ordinal"][which])


def answers(folder: Path, task: int) -> Repeats:
    """Answers yes for the ordinals that were found in all buckets, no for all others."""
    files = (folder / "repeats" / f"{task:05d}").glob("*.npy")
    repeated = {ordinal for file in files for ordinal in np.load(file).tolist()}
    ordinals = itertools.count()
    return lambda _: next(ordinals) in repeated


def save_array(file: Path, array: np.ndarray) -> None:
    """Save where the folder may not be there yet."""
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, array)
