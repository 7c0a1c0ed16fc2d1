"""``fetch``: the documents of one source as a parquet file, split into training and held out."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wrinklefree.errors import UserError
from wrinklefree.text.documents.document import Document
from wrinklefree.text.documents.parquet import DocumentWriter
from wrinklefree.text.documents.settings import (
    GeneratedSource,
    HeldOutSettings,
    Source,
    SourceBase,
)
from wrinklefree.text.sources.generated import is_of_held_out_level
from wrinklefree.text.sources.reader import SourceReader
from wrinklefree.tracking.progress import progress


@dataclass
class _Counts:
    documents: int = 0
    bytes: int = 0
    held_out_documents: int = 0
    held_out_bytes: int = 0
    dropped_empty: int = 0

    def add(self, size: int, split: str) -> None:
        self.documents += 1
        self.bytes += size
        if split == "held_out":
            self.held_out_documents += 1
            self.held_out_bytes += size

    @property
    def train_bytes(self) -> int:
        return self.bytes - self.held_out_bytes


def fetch_source(
    name: str, source: Source, held_out: HeldOutSettings, folder: Path, *, cache: Path
) -> dict[str, Any]:
    """Write ``documents.parquet`` (columns id, text, domain, split) and return its facts.

    Documents without a printing character are dropped and counted. Memory holds one row group of
    text. The same source gives the same bytes. ``cache`` keeps downloads between runs. Facts count
    all documents kept, bytes in UTF-8; ``bad_records`` those skipped, by reason; ``stopped_by``
    says what ended the reading: ``max_documents``, ``max_tokens`` or the end of the ``source``.
    Raises UserError for a source without documents and, unless they are skipped, for bad records.
    """
    counts = _Counts()
    reader = SourceReader(name, source, cache)
    with DocumentWriter(folder, source.domain) as writer:
        for document in progress(reader, f"fetch {name}", "documents"):
            if not document.text.strip():
                counts.dropped_empty += 1
                continue
            split = split_of(document, source, held_out)
            counts.add(len(document.text.encode()), split)
            writer.append(document, split)
            if _enough(source, counts):
                break
    if counts.documents == 0:
        raise UserError(
            f"source {name} has no documents ({counts.dropped_empty} empty ones were dropped and"
            f" {reader.bad.counts.total()} bad records skipped); check sources.{name} in"
            " params.yaml"
        )
    stopped_by = "max_documents" if reader.at_max_documents else "source"
    if _enough(source, counts):
        stopped_by = "max_tokens"
    facts: dict[str, Any] = {
        **asdict(counts),
        "bad_records": dict(sorted(reader.bad.counts.items())),
        "stopped_by": stopped_by,
        "domain": source.domain,
        "licence": source.licence,
    }
    if sha256 := getattr(source, "sha256", None):
        facts["sha256"] = sha256
    return facts


def split_of(document: Document, source: SourceBase, held_out: HeldOutSettings) -> str:
    """``train`` or ``held_out``: a function of the settings, the document's text and its id.

    The draw is by the text alone, so a text that two sources have is on the same side in both; only
    ``held_out_pattern`` and the levels of a generated source look at the id.
    """
    pattern = source.held_out_pattern
    if pattern is not None and re.search(pattern, document.id):
        return "held_out"
    if isinstance(source, GeneratedSource) and is_of_held_out_level(source, document):
        return "held_out"
    digest = hashlib.sha256(document.text.encode()).digest()
    below = int.from_bytes(digest[:8], "big") < held_out.fraction * 2**64
    return "held_out" if below else "train"


def _enough(source: SourceBase, counts: _Counts) -> bool:
    """Whether the text is sure to hold ``max_tokens``."""
    tokens = source.max_tokens
    return tokens is not None and counts.train_bytes >= tokens * source.fetch_bytes_per_token
