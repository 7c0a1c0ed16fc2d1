"""One line of what tokenizing made, from the facts in its manifest."""

from __future__ import annotations

from typing import Any


def tokenized(facts: dict[str, Any]) -> str:
    """Tokens to train on and held out, and how long they are."""
    tokens, length = facts["tokens"], facts["bytes_per_token"]["train"]
    each = f", {length:.2f} bytes each" if length else ""
    return f"{tokens['train']:,} training tokens{each}; {tokens['held_out']:,} held out"
