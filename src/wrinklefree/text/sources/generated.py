"""Documents from generators of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from wrinklefree.text.documents.document import Document
from wrinklefree.text.documents.settings import GeneratedSource
from wrinklefree.text.generators import mathematics
from wrinklefree.text.sources.bad_records import BadRecords

GENERATORS: dict[str, Callable[[int, int, int], str]] = {"mathematics": mathematics.document}


def documents(source: GeneratedSource, *, cache: Path, bad: BadRecords) -> Iterator[Document]:
    """``source.documents`` documents; the i-th is a pure function of the settings and i.

    The id is ``<generator>/<seed>/level<level>/<i>``. ``cache`` and ``bad`` are not used.
    """
    generate = GENERATORS[source.generator]
    for index in range(source.documents):
        level = mathematics.level_of(
            source.seed,
            index,
            source.levels,
            source.held_out_levels,
            source.held_out_level_interval,
        )
        id = f"{source.generator}/{source.seed}/level{level}/{index}"
        yield Document(id, generate(source.seed, index, level))


def is_of_held_out_level(source: GeneratedSource, document: Document) -> bool:
    """Whether the level in the document's id is one that is never trained on."""
    return any(f"/level{level}/" in document.id for level in source.held_out_levels)
