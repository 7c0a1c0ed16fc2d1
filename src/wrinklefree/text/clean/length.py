"""Step 2: documents that are too short or too long go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from wrinklefree.text.clean.counts import Counts
from wrinklefree.text.clean.items import Item


def drop_unfit_lengths(
    items: Iterable[Item], minimum: int, maximum: int, counts: Counts
) -> Iterator[Item]:
    """``items`` whose text has ``minimum`` to ``maximum`` characters."""
    for document, split in items:
        if minimum <= len(document.text) <= maximum:
            yield document, split
        else:
            counts.drop_document("length", document.text)
