"""The engine ``local``: one process, documents streamed through the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from wrinklefree.text.clean.contamination import convicting, count_documents_with, drop_contaminated
from wrinklefree.text.clean.counts import Counts
from wrinklefree.text.clean.documents import drop_repeated_documents
from wrinklefree.text.clean.items import Item
from wrinklefree.text.clean.language import drop_other_languages
from wrinklefree.text.clean.length import drop_unfit_lengths
from wrinklefree.text.clean.paragraphs import drop_repeated_paragraphs
from wrinklefree.text.clean.quality import drop_low_quality
from wrinklefree.text.clean.repeats import Repeats, Seen
from wrinklefree.text.documents.parquet import DocumentWriter, read_documents
from wrinklefree.text.documents.settings import CleaningSteps
from wrinklefree.tracking.progress import progress


def clean_locally(
    name: str,
    steps: CleaningSteps,
    raw: Path,
    evaluation: Callable[[], np.ndarray],
    judges_FH: np.ndarray | None,
    work: Path,
    counts: Counts,
) -> Iterator[Item]:
    """The documents of ``raw`` that the steps leave, in order.

    Memory: about 110 bytes per different document and per different paragraph of the set length,
    12 bytes per evaluation n-gram, and a few megabytes of text. Which n-grams are templates is
    known when all documents were seen, so with decontamination they are written to ``work`` and
    read again.

    Parameters
    ----------
    evaluation : gives :func:`~wrinklefree.text.clean.evaluation.evaluation_ngrams`.
    judges_FH : of :func:`~wrinklefree.text.clean.quality.train_judges`; None judges nothing.
    counts : what was read and dropped is added to it.
    """
    items = progress(read_documents(raw), f"clean {name}", "documents")
    items = filtered(counted(items, counts), steps, counts, Seen(), Seen(), judges_FH)
    if not steps.decontamination.enabled:
        yield from items
        return
    n = steps.decontamination.ngram
    hashes = evaluation()
    documents_with = np.zeros(len(hashes), dtype=np.uint32)
    work.mkdir(parents=True, exist_ok=True)
    with DocumentWriter(work, name) as writer:
        for document, split in count_documents_with(items, hashes, n, documents_with):
            writer.append(document, split)
    hashes = convicting(hashes, documents_with, steps.decontamination.max_training_documents)
    again = progress(read_documents(work), f"decontaminate {name}", "documents")
    yield from drop_contaminated(again, hashes, n, counts)


def counted(items: Iterable[Item], counts: Counts) -> Iterator[Item]:
    """``items`` unchanged, counted as read."""
    for document, split in items:
        counts.count_read(document.text, split)
        yield document, split


def filtered(
    items: Iterable[Item],
    steps: CleaningSteps,
    counts: Counts,
    repeated_document: Repeats,
    repeated_paragraph: Repeats,
    judges_FH: np.ndarray | None,
) -> Iterable[Item]:
    """``items`` that steps 1 to 5 leave."""
    if steps.deduplicate_documents:
        items = drop_repeated_documents(items, repeated_document, counts)
    items = drop_unfit_lengths(items, steps.min_characters, steps.max_characters, counts)
    if steps.language.enabled:
        items = drop_other_languages(items, steps.language, counts)
    if judges_FH is not None:
        items = drop_low_quality(items, judges_FH, steps.quality, counts)
    if steps.paragraphs.deduplicate:
        minimum = steps.paragraphs.min_characters
        items = drop_repeated_paragraphs(items, minimum, repeated_paragraph, counts)
    return items
