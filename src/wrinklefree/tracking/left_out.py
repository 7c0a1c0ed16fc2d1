"""Artifacts of stages that had nothing to do: both engines run every stage of the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_FILE = "left_out.txt"


def leave_out(folder: Path, why: str) -> dict[str, Any]:
    """Write into ``folder`` that nothing is made, and return the facts that say so."""
    (folder / _FILE).write_text(why, encoding="utf-8")
    return {"left_out": why}


def why_left_out(artifact: Path) -> str | None:
    """Why nothing was made, or None of an artifact as any other."""
    file = artifact / _FILE
    return file.read_text(encoding="utf-8") if file.is_file() else None
