"""Step 1: of documents with equal text the first stays, whichever split it is in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from wrinklefree.text.clean.counts import Counts
from wrinklefree.text.clean.items import Item
from wrinklefree.text.clean.repeats import Repeats, digest


def drop_repeated_documents(
    items: Iterable[Item], is_repeat: Repeats, counts: Counts
) -> Iterator[Item]:
    """``items`` without documents whose text came before."""
    for document, split in items:
        if is_repeat(digest(document.text)):
            counts.drop_document("repeated_documents", document.text)
        else:
            yield document, split
