"""Step 5: of equal paragraphs of the training split the first stays.

A paragraph is what stands between blank lines. Held-out documents are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from wrinklefree.text.clean.counts import Counts
from wrinklefree.text.clean.items import Item
from wrinklefree.text.clean.repeats import Repeats, digest
from wrinklefree.text.documents.document import Document

_BLANK_LINES = re.compile(r"(\n\s*\n)")


def split_paragraphs(text: str) -> list[str]:
    """Paragraph, separator, paragraph, ..., paragraph; joined they are the text."""
    return _BLANK_LINES.split(text)


def without_paragraphs(pieces: list[str], dropped: Collection[int]) -> str:
    """The text of ``pieces`` without some paragraphs and the separators that follow them.

    ``dropped``: numbers of paragraphs from 0. Empty if nothing printing is left.
    """
    kept = "".join(piece for index, piece in enumerate(pieces) if index // 2 not in dropped)
    return kept if kept.strip() else ""


def drop_repeated_paragraphs(
    items: Iterable[Item], min_characters: int, is_repeat: Repeats, counts: Counts
) -> Iterator[Item]:
    """``items`` without training paragraphs that came before, compared without space around them.

    Paragraphs under ``min_characters`` stay. A document of which nothing is left goes.
    """
    for document, split in items:
        if split != "train" or len(document.text) < min_characters:
            yield document, split
            continue
        pieces = split_paragraphs(document.text)
        dropped = set()
        for number, piece in enumerate(pieces[::2]):
            paragraph = piece.strip()
            if len(paragraph) >= min_characters and is_repeat(digest(paragraph)):
                dropped.add(number)
        if not dropped:
            yield document, split
            continue
        text = without_paragraphs(pieces, dropped)
        counts.drop_paragraphs("repeated_paragraphs", len(dropped), document.text, text)
        if text:
            yield Document(document.id, text), split
