"""``history.jsonl``: the metrics of every optimizer step of a training stage. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path

HISTORY = "history.jsonl"


def write_history(folder: Path, history: list[dict[str, float]]) -> None:
    """Write the file into ``folder``: one JSON object per optimizer step."""
    lines = "".join(json.dumps(entry) + "\n" for entry in history)
    (folder / HISTORY).write_text(lines, encoding="utf-8")


def read_history(folder: Path) -> list[dict[str, float]]:
    """The entries that :func:`write_history` wrote into ``folder``."""
    text = (folder / HISTORY).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
