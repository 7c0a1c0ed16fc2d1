"""Where documents come from: one file per kind.

Each has ``documents(source, *, cache, bad) -> Iterator[Document]``, which reads lazily, in an order
that is always the same. ``cache`` is a folder for downloads that outlives the stage, ``bad`` takes
records that are no document. ``reader.SourceReader`` is what the stages read through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from wrinklefree.text.documents.document import Document
from wrinklefree.text.sources import (
    files,
    generated,
    hub,
    package,
)

SOURCES: dict[str, Callable[..., Iterator[Document]]] = {
    "package": package.documents,
    "files": files.documents,
    "hub": hub.documents,
    "generated": generated.documents,
}
