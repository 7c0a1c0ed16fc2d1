"""What every source yields."""

from __future__ import annotations

from typing import NamedTuple


class Document(NamedTuple):
    """One text, never cut or joined before tokenization."""

    id: str
    """Unique and stable within its source; the held-out split is drawn from it."""
    text: str
