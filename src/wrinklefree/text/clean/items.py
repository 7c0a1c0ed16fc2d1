"""What flows through the steps: documents with their split, in the order of the source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from wrinklefree.text.documents.document import Document

Item = tuple[Document, str]
"""A document and its split."""
Value = TypeVar("Value")

BATCH_CHARACTERS = 1 << 20
BATCH_DOCUMENTS = 1024


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """``items`` in lists of about a megabyte, for steps that work on many texts at once."""
    return _batches(items, lambda item: len(item[0].text))


def text_batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """The same for texts alone."""
    return _batches(texts, len)


def _batches(values: Iterable[Value], length: Callable[[Value], int]) -> Iterator[list[Value]]:
    batch: list[Value] = []
    size = 0
    for value in values:
        batch.append(value)
        size += length(value)
        if size >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
