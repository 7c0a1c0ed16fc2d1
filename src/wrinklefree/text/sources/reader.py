"""The usable documents of any source."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from wrinklefree.text.documents.document import Document
from wrinklefree.text.documents.settings import Source
from wrinklefree.text.sources import SOURCES
from wrinklefree.text.sources.bad_records import BadRecords


class SourceReader:
    """Iterates over the first ``max_documents`` of a source, checked, empty ones included.

    Raises UserError for what the source refuses and, unless they are skipped, for bad records.
    """

    def __init__(self, name: str, source: Source, cache: Path) -> None:
        """``name`` is shown in errors; ``cache`` is a folder for downloads."""
        self._name, self._source, self._cache = name, source, cache
        self.bad = BadRecords(source.on_bad_record, source.max_document_megabytes * 2**20)
        self.at_max_documents = False
        """Whether the reading ended with the document that ``max_documents`` names."""

    def __iter__(self) -> Iterator[Document]:
        found = SOURCES[self._source.kind](self._source, cache=self._cache, bad=self.bad)
        limit = self._source.max_documents
        for number, document in enumerate(islice(found, limit), start=1):
            self.at_max_documents = number == limit
            if self._is_text(document):
                yield document

    def _is_text(self, document: Document) -> bool:
        """Whether id and text can be written and have no NUL; if not, it is reported."""
        where = f"document {document.id!r} of source {self._name}"
        try:
            size = len(document.text.encode())
            document.id.encode()
        except UnicodeEncodeError as error:
            self.bad.report(
                "no UTF-8 form",
                f"{where} has no UTF-8 form ({error.reason} at character {error.start}); correct"
                " or exclude it",
            )
            return False
        if (position := document.text.find("\0")) >= 0:
            self.bad.report(
                "NUL character",
                f"{where} has a NUL at character {position}, so it is hardly text; correct or"
                " exclude it",
            )
            return False
        if size > self.bad.max_document_bytes:
            self.bad.report_too_long(where)
            return False
        return True
