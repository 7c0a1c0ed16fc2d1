"""Documents from generators of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from wrinklefree.config.sources import GeneratedSource
from wrinklefree.data.document import Document
from wrinklefree.data.generators import mathematics

GENERATORS: dict[str, Callable[[int, int], str]] = {"mathematics": mathematics.document}


def documents(source: GeneratedSource, *, cache: Path) -> Iterator[Document]:
    """``source.documents`` documents; the i-th is a pure function of the seed and i.

    ``cache`` is not used.
    """
    generate = GENERATORS[source.generator]
    for index in range(source.documents):
        yield Document(f"{source.generator}/{source.seed}/{index}", generate(source.seed, index))
