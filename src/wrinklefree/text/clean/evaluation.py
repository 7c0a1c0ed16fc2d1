"""The text that training must not contain: held-out splits of all sources, and references."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wrinklefree.errors import UserError
from wrinklefree.text.clean.counts import Counts
from wrinklefree.text.clean.items import text_batches
from wrinklefree.text.clean.ngrams import different_ngrams
from wrinklefree.text.documents.parquet import read_texts
from wrinklefree.text.documents.settings import Source
from wrinklefree.text.sources.reader import SourceReader
from wrinklefree.tracking.progress import progress


def evaluation_ngrams(
    raw: dict[str, Path], references: dict[str, Source], n: int, counts: Counts, *, cache: Path
) -> np.ndarray:
    """Sorted hashes of the word n-grams of all evaluation text, uint64 [G]; memory 8 bytes each.

    ``raw``: fetched folders of all sources. Their held-out documents count as they were fetched,
    whatever cleaning leaves of them. n-grams may reach over paragraphs. ``cache`` keeps downloads;
    ``counts`` takes the bad records of references that are skipped. Raises UserError for a
    reference without text.
    """
    texts = _evaluation_texts(raw, references, counts, cache)
    return different_ngrams(text_batches(progress(texts, "evaluation text", "documents")), n)


def _evaluation_texts(
    raw: dict[str, Path], references: dict[str, Source], counts: Counts, cache: Path
) -> Iterator[str]:
    for name in sorted(raw):
        yield from read_texts(raw[name], "held_out")
    for name in sorted(references):
        source = references[name]
        count = 0
        reader = SourceReader(name, source, cache)
        for document in reader:
            count += bool(document.text.strip())
            yield document.text
        if reader.bad.counts:
            counts.bad_references[name] = reader.bad.counts
        if not count:
            raise UserError(
                f"reference {name} has no text; check cleaning.references.{name} in params.yaml"
            )
