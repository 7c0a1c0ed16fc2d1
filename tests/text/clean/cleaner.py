"""Cleaning of texts instead of folders, and what the tests of several steps share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from wrinklefree.text.clean.settings import CleaningSettings
from wrinklefree.text.clean.source import clean_source
from wrinklefree.text.documents.document import Document
from wrinklefree.text.documents.parquet import DOCUMENTS_FILE, DocumentWriter, read_documents
from wrinklefree.text.documents.settings import CleaningSteps

Texts = list[tuple[str, str]]
"""(text, split) in order."""

OFF: dict[str, Any] = {
    "deduplicate_documents": False,
    "language": {"enabled": False},
    "paragraphs": {"deduplicate": False},
    "decontamination": {"enabled": False},
}
"""All steps off, to be switched on one by one."""


def write(folder: Path, texts: Texts) -> Path:
    folder.mkdir(parents=True)
    with DocumentWriter(folder, "d") as writer:
        for number, (text, split) in enumerate(texts):
            writer.append(Document(f"{number}", text), split)
    return folder


class Cleaner:
    """Cleans source ``s``; every call has folders of its own below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = 0

    def __call__(
        self,
        texts: Texts,
        *,
        others: dict[str, Texts] | None = None,
        own: CleaningSteps | None = None,
        **settings: Any,
    ) -> tuple[Texts, dict[str, Any], bytes]:
        """Texts that are left, facts, bytes of the file."""
        self.calls += 1
        root = self.folder / str(self.calls)
        sources = {"s": texts, **(others or {})}
        raw = {name: write(root / "raw" / name, content) for name, content in sources.items()}
        (root / "out").mkdir()
        settings.setdefault("engine", {"kind": "local"})
        facts = clean_source(
            "s",
            CleaningSettings(**settings),
            own,
            raw,
            root / "out",
            work=root / "work",
            cache=root / "cache",
        )
        left = [(document.text, split) for document, split in read_documents(root / "out")]
        return left, facts, (root / "out" / DOCUMENTS_FILE).read_bytes()


def slow_ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """Runs of ``n`` words, one by one; all words of a text that has fewer."""
    words = re.findall(r"\w+", text.lower())
    if not words:
        return []
    return [tuple(words[start : start + n]) for start in range(max(len(words) - n, 0) + 1)]
