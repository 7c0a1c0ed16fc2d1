"""What the steps dropped, counted alike by both engines."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

STEPS = (
    "repeated_documents",
    "length",
    "language",
    "quality",
    "repeated_paragraphs",
    "near_duplicates",
    "contamination",
)
"""In the order in which they are taken."""


class Counts:
    """Documents and bytes of UTF-8 per split that were read, and what each step dropped."""

    def __init__(self) -> None:
        self.read: dict[str, dict[str, int]] = defaultdict(lambda: {"documents": 0, "bytes": 0})
        self.dropped = {step: {"documents": 0, "paragraphs": 0, "bytes": 0} for step in STEPS}
        self.bad_references: dict[str, Counter[str]] = defaultdict(Counter)
        """Skipped records of each reference, by reason."""

    def count_read(self, text: str, split: str) -> None:
        """A document came in."""
        self.read[split]["documents"] += 1
        self.read[split]["bytes"] += len(text.encode())

    def drop_document(self, step: str, text: str) -> None:
        """A step dropped a whole document."""
        self.dropped[step]["documents"] += 1
        self.dropped[step]["bytes"] += len(text.encode())

    def drop_paragraphs(self, step: str, paragraphs: int, before: str, after: str) -> None:
        """A step cut paragraphs out of a document.

        One of which nothing is left counts as a document, too.
        """
        self.dropped[step]["paragraphs"] += paragraphs
        self.dropped[step]["documents"] += not after
        self.dropped[step]["bytes"] += len(before.encode()) - len(after.encode())

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        facts: dict[str, Any] = {"read": dict(self.read), "dropped": self.dropped}
        if self.bad_references:
            facts["bad_references"] = {name: dict(n) for name, n in self.bad_references.items()}
        return facts

    def add(self, other: dict[str, Any]) -> None:
        """Add what :meth:`as_dict` of another gave."""
        for mine, kind in (
            (self.read, "read"),
            (self.dropped, "dropped"),
            (self.bad_references, "bad_references"),
        ):
            for key, numbers in other.get(kind, {}).items():
                for name, number in numbers.items():
                    mine[key][name] += number

    def summary(self) -> str:
        """One line for a person: the steps that dropped something, largest first."""
        total = max(sum(split["bytes"] for split in self.read.values()), 1)
        steps = sorted(self.dropped.items(), key=lambda item: -item[1]["bytes"])
        parts = [
            f"{name} {100 * numbers['bytes'] / total:.1f} % of the bytes"
            f" ({numbers['documents']} documents, {numbers['paragraphs']} paragraphs)"
            for name, numbers in steps
            if numbers["bytes"]
        ]
        return ", ".join(parts) or "nothing"
