"""The documents file of a source: what ``fetch`` and ``clean`` write and all later stages read.

``documents.parquet`` has the columns id, text, domain and split, in row groups of about 8 million
characters of text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from wrinklefree.text.documents.document import Document

DOCUMENTS_FILE = "documents.parquet"
ROW_GROUP_BYTES = 8 * 2**20
"""As of text in ASCII: a character of another script counts as one byte, too."""
SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "text", "domain", "split")])


class DocumentWriter:
    """Writes ``documents.parquet`` of one domain; memory holds one row group.

    Equal documents in equal order give equal bytes. Use as a context manager.
    """

    def __init__(self, folder: Path, domain: str) -> None:
        self._domain = domain
        self._writer = pq.ParquetWriter(folder / DOCUMENTS_FILE, SCHEMA, compression="zstd")
        self._group: list[tuple[str, str, str]] = []
        self._size = 0

    def append(self, document: Document, split: str) -> None:
        """Add a document to ``split``."""
        self._group.append((document.id, document.text, split))
        self._size += len(document.text)
        if self._size >= ROW_GROUP_BYTES:
            self._flush()

    def __enter__(self) -> DocumentWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if not self._group:
            return
        ids, texts, splits = (list(column) for column in zip(*self._group, strict=True))
        domains = [self._domain] * len(ids)
        columns = {"id": ids, "text": texts, "domain": domains, "split": splits}
        self._writer.write_table(pa.table(columns, schema=SCHEMA))
        self._group, self._size = [], 0


def read_documents(folder: Path, part: int = 0, parts: int = 1) -> Iterator[tuple[Document, str]]:
    """(document, split) of all documents of a folder, in order; memory holds part of a group.

    Of ``parts`` equal parts, each of whole row groups, only those of number ``part`` from 0.
    """
    with pq.ParquetFile(folder / DOCUMENTS_FILE) as file:
        groups = file.num_row_groups
        for group in range(part * groups // parts, (part + 1) * groups // parts):
            for batch in file.iter_batches(1024, [group], ["id", "text", "split"]):
                ids, texts, splits = (column.to_pylist() for column in batch.columns)
                for id, text, split in zip(ids, texts, splits, strict=True):
                    yield Document(id, text), split


def read_texts(folder: Path, split: str) -> Iterator[str]:
    """Texts of one split of a folder, in order."""
    yield from (document.text for document, kind in read_documents(folder) if kind == split)


def read_domain(folder: Path) -> str:
    """The domain of a folder's documents."""
    with pq.ParquetFile(folder / DOCUMENTS_FILE) as file:
        return next(file.iter_batches(batch_size=1, columns=["domain"])).column("domain")[0].as_py()
