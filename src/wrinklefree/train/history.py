"""``history.jsonl``: the metrics of every optimizer step of a training stage. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

HISTORY = "history.jsonl"


def write_history(folder: Path, history: list[dict[str, float]]) -> None:
    """Write the file into ``folder``: one JSON object per optimizer step."""
    (folder / HISTORY).write_bytes(_lines(history))


def read_history(folder: Path) -> list[dict[str, float]]:
    """The entries that :func:`write_history` wrote into ``folder``."""
    return _entries((folder / HISTORY).read_bytes())


class HistoryFile:
    """The one history of a folder of checkpoints, of which each knows how far its own goes.

    A checkpoint appends what it has more than the one before, rather than writing all of it again.

    Parameters
    ----------
    content : what the file begins with, and goes on from.
    """

    def __init__(self, content: bytes = b"") -> None:
        self._steps = content.count(b"\n")
        self._bytes = len(content)
        self._digest = hashlib.sha256(content)

    @property
    def record(self) -> dict[str, Any]:
        """What a checkpoint knows of it: bytes and SHA-256 of the file up to here."""
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def extend(self, folder: Path, history: list[dict[str, float]]) -> None:
        """Make the file in ``folder`` hold ``history``, of which it has the beginning, on disk."""
        path = folder / HISTORY
        if not path.is_file() or path.stat().st_size < self._bytes:  # somebody took it away
            self._steps, self._bytes, self._digest = 0, 0, hashlib.sha256()
        folder.mkdir(parents=True, exist_ok=True)
        new = _lines(history[self._steps :])
        with path.open("r+b" if self._bytes else "wb") as file:
            file.truncate(self._bytes)  # what was written for a checkpoint that never was
            file.seek(self._bytes)
            file.write(new)
            file.flush()
            os.fsync(file.fileno())
        self._steps = len(history)
        self._bytes += len(new)
        self._digest.update(new)


def read_history_up_to(folder: Path, record: Any) -> tuple[list[dict[str, float]], HistoryFile]:
    """The entries up to what a checkpoint recorded, and the file to go on with from there.

    Raises OSError or ValueError: the file is missing, too short, another one, or no history.
    """
    path = folder / HISTORY
    if not isinstance(record, dict) or not isinstance(length := record.get("bytes"), int):
        raise ValueError("the checkpoint does not say how far its history goes")
    with path.open("rb") as file:
        content = file.read(length)
    known = HistoryFile(content)
    if known.record != record:
        raise ValueError(f"its first {length} bytes are not those that the checkpoint recorded")
    return _entries(content), known


def _lines(history: list[dict[str, float]]) -> bytes:
    return "".join(json.dumps(entry) + "\n" for entry in history).encode()


def _entries(content: bytes) -> list[dict[str, float]]:
    return [json.loads(line) for line in content.decode().splitlines()]
