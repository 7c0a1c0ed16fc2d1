"""What every source yields."""

from __future__ import annotations

from typing import NamedTuple


class Document(NamedTuple):
    """One text, never cut or joined before tokenization."""

    id: str
    """Unique and stable within its source; ``held_out_pattern`` is searched in it."""
    text: str
