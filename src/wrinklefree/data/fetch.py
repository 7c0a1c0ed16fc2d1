"""``fetch``: the documents of one source as a parquet file, split into training and held out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from wrinklefree.config.sources import HeldOutSettings, Source, SourceBase
from wrinklefree.data.document import Document
from wrinklefree.data.documents import DocumentWriter
from wrinklefree.data.progress import progress
from wrinklefree.data.sources import SOURCES
from wrinklefree.errors import UserError


@dataclass
class _Counts:
    documents: int = 0
    bytes: int = 0
    held_out_documents: int = 0
    held_out_bytes: int = 0
    dropped_empty: int = 0
    dropped_duplicates: int = 0


def fetch_source(
    name: str, source: Source, held_out: HeldOutSettings, folder: Path, *, cache: Path
) -> dict[str, Any]:
    """Write ``documents.parquet`` (columns id, text, domain, split) and return its facts.

    Documents without a printing character and exact duplicates of an earlier one are dropped.
    Memory holds one row group of text and 16 bytes per document. The same source gives the same
    bytes. ``cache`` keeps downloads between runs. Facts count all documents kept, bytes in UTF-8.
    Raises UserError for a source without documents and for text that has no UTF-8 form.
    """
    counts = _Counts()
    found = islice(SOURCES[source.kind](source, cache=cache), source.max_documents)
    kept = _kept_documents(name, progress(found, f"fetch {name}", "documents"), counts)
    with DocumentWriter(folder, source.domain) as writer:
        for document in kept:
            split = split_of(document, source, held_out)
            _count(counts, document, split)
            writer.append(document, split)
    if counts.documents == 0:
        raise UserError(
            f"source {name} has no documents ({counts.dropped_empty} empty ones were dropped);"
            f" check sources.{name} in params.yaml"
        )
    facts: dict[str, Any] = {**asdict(counts), "domain": source.domain, "licence": source.licence}
    if sha256 := getattr(source, "sha256", None):
        facts["sha256"] = sha256
    return facts


def split_of(document: Document, source: SourceBase, held_out: HeldOutSettings) -> str:
    """``train`` or ``held_out``: a function of the settings, the document's text and its id.

    The draw is by the text alone, so a text that two sources have is on the same side in both; only
    ``held_out_pattern`` looks at the id.
    """
    pattern = source.held_out_pattern
    if pattern is not None and re.search(pattern, document.id):
        return "held_out"
    digest = hashlib.sha256(document.text.encode()).digest()
    below = int.from_bytes(digest[:8], "big") < held_out.fraction * 2**64
    return "held_out" if below else "train"


def _kept_documents(
    name: str, documents: Iterator[Document], counts: _Counts
) -> Iterator[Document]:
    seen: set[bytes] = set()
    for document in documents:
        if not document.text.strip():
            counts.dropped_empty += 1
            continue
        try:
            digest = hashlib.blake2b(document.text.encode(), digest_size=16).digest()
        except UnicodeEncodeError as error:
            raise UserError(
                f"document {document.id!r} of source {name} has no UTF-8 form ({error.reason} at"
                f" character {error.start}); correct or exclude it"
            ) from error
        if digest in seen:
            counts.dropped_duplicates += 1
            continue
        seen.add(digest)
        yield document


def _count(counts: _Counts, document: Document, split: str) -> None:
    size = len(document.text.encode())
    counts.documents += 1
    counts.bytes += size
    if split == "held_out":
        counts.held_out_documents += 1
        counts.held_out_bytes += size
