"""What every source yields, and the two splits that documents are in."""

from __future__ import annotations

from typing import NamedTuple

SPLITS = ("train", "held_out")


class Document(NamedTuple):
    """One text, never cut or joined before tokenization."""

    id: str
    """Unique and stable within its source; ``held_out_pattern`` is searched in it."""
    text: str
