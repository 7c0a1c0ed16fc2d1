"""Step 6: training paragraphs that share word n-grams with evaluation text go.

As for GPT-3 (2005.14165, appendix C) an n-gram that many training documents have is a template and
convicts nobody. Only paragraphs go here, not 200 characters around the n-gram.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from wrinklefree.text.clean.counts import Counts
from wrinklefree.text.clean.items import Item, batches
from wrinklefree.text.clean.ngrams import HashIndex, ngram_hashes
from wrinklefree.text.clean.paragraphs import split_paragraphs, without_paragraphs
from wrinklefree.text.documents.document import Document


def count_documents_with(
    items: Iterable[Item], evaluation: np.ndarray, n: int, documents_with: np.ndarray
) -> Iterator[Item]:
    """``items`` unchanged; adds to ``documents_with`` the training documents that have each n-gram.

    ``evaluation``: sorted hashes, uint64 [G]. ``documents_with``: integers [G].
    """
    index = HashIndex(evaluation)
    for batch in batches(items):
        _, owner, position = _matches(batch, index, n)
        pairs = np.unique(owner * len(evaluation) + position)
        np.add.at(documents_with, pairs % max(len(evaluation), 1), 1)
        yield from batch


def convicting(
    evaluation: np.ndarray, documents_with: np.ndarray, max_documents: int
) -> np.ndarray:
    """Those of ``evaluation`` that at most ``max_documents`` training documents have."""
    return evaluation[(documents_with > 0) & (documents_with <= max_documents)]


def drop_contaminated(
    items: Iterable[Item], evaluation: np.ndarray, n: int, counts: Counts
) -> Iterator[Item]:
    """``items`` without training paragraphs that have an n-gram of ``evaluation``.

    A paragraph of fewer than ``n`` words goes if its words are all that an evaluation text has. A
    document of which nothing is left goes.
    """
    index = HashIndex(evaluation)
    for batch in batches(items):
        paragraph, owner, _ = _matches(batch, index, n)
        bad: dict[int, set[int]] = {}
        for place, number in zip(owner.tolist(), paragraph.tolist(), strict=True):
            bad.setdefault(place, set()).add(number)
        for place, (document, split) in enumerate(batch):
            if place not in bad:
                yield document, split
                continue
            text = without_paragraphs(split_paragraphs(document.text), bad[place])
            counts.drop_paragraphs("contamination", len(bad[place]), document.text, text)
            if text:
                yield Document(document.id, text), split


def _matches(
    batch: list[Item], index: HashIndex, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every n-gram of the evaluation in a training paragraph: which one of its document, the
    document's place in the batch, the n-gram's in the index."""
    paragraphs: list[str] = []
    numbers: list[int] = []
    owners: list[int] = []
    for place, (document, split) in enumerate(batch):
        if split == "train":
            found = split_paragraphs(document.text)[::2]
            paragraphs += found
            numbers += range(len(found))
            owners += [place] * len(found)
    hashes, paragraph = ngram_hashes(paragraphs, n)
    hits, position = index.find(hashes)
    paragraph = paragraph[hits]
    return (
        np.array(numbers, dtype=np.int64)[paragraph],
        np.array(owners, dtype=np.int64)[paragraph],
        position,
    )
