"""What flows through the steps: documents with their split, in the order of the source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from wrinklefree.text.documents.document import Document

Item = tuple[Document, str]
"""A document and its split."""

BATCH_CHARACTERS = 1 << 20
BATCH_DOCUMENTS = 1024


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """``items`` in lists of about a megabyte, for steps that work on many texts at once."""
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item[0].text)
        if size >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def text_batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """``texts`` in lists of about a megabyte."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
