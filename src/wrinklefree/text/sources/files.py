"""Documents in files on this machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from wrinklefree.downloads.local_files import digest_of_files, find_files
from wrinklefree.errors import UserError
from wrinklefree.text.documents.document import Document
from wrinklefree.text.documents.settings import FilesSource
from wrinklefree.text.sources.bad_records import BadRecords
from wrinklefree.text.sources.decompress import decompressed, plain_name, read_bounded
from wrinklefree.text.sources.json_text import BAD, json_value
from wrinklefree.tracking.files import is_disk_full

_BATCH_ROWS = 256
_READ_BYTES = 1 << 20


def documents(source: FilesSource, *, cache: Path, bad: BadRecords) -> Iterator[Document]:
    """Documents of all files that the paths find, sorted by name.

    A ``.txt`` file is a document, its name the id; a line of ``.jsonl`` and a row of ``.parquet``
    are one each, with id ``<name>#<number or id_field>``, lines counted from 1 and rows from 0.
    Memory holds one line, one batch of rows or one ``.txt`` file. A compressed ``.parquet`` is
    decompressed into ``cache`` for the time being.

    Raises UserError for a path without files, another file type, files of another digest, and with
    file and record for what can't be read; what is a bad record goes to ``bad``.
    """
    files = find_files(source.paths)
    for name in files:
        if not plain_name(name).endswith((".txt", ".jsonl", ".parquet")):
            raise UserError(
                f"{files[name]} is neither .txt nor .jsonl nor .parquet, alone or with .gz or .zst"
                " behind; narrow the globs in paths or convert it"
            )
    stamps = {name: _stamp(path) for name, path in files.items()}
    _check_digest(source, digest_of_files(files), len(files))
    for name, path in files.items():
        try:
            yield from _documents_of_file(source, name, path, cache, bad)
        except (OSError, pa.ArrowException) as error:
            if is_disk_full(error):  # of the decompressed copy
                raise
            raise UserError(
                f"{path}: can't be read to its end ({error}); it was cut short or damaged before"
                " its sha256 was taken: get it again, or leave it out of paths"
            ) from error
        if _stamp(path) != stamps[name]:
            raise UserError(f"{path} was changed while it was read; run again when it is complete")


def _check_digest(source: FilesSource, found: str, count: int) -> None:
    if found != source.sha256:
        raise UserError(
            f"the {count} files of {source.paths} have sha256 {found}, expected {source.sha256}:"
            " a file was edited, added, renamed or lost. If it should be so, write the new value to"
            " this source's sha256 in params.yaml; `wrinklefree hash PATHS` prints it"
        )


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _documents_of_file(
    source: FilesSource, name: str, path: Path, cache: Path, bad: BadRecords
) -> Iterator[Document]:
    plain = plain_name(name)
    with path.open("rb") as file, decompressed(file, name) as stream:
        if plain.endswith(".txt"):
            yield from _text(name, path, stream, bad)
        elif plain.endswith(".jsonl"):
            yield from _json_lines(source, name, path, stream, bad)
        elif plain == name:
            yield from _parquet_rows(source, name, path, path, bad)
        else:
            cache.mkdir(parents=True, exist_ok=True)
            # Without a name, so that nothing is left of it when the process is killed.
            with tempfile.TemporaryFile(dir=cache) as whole:
                shutil.copyfileobj(stream, whole, _READ_BYTES)
                yield from _parquet_rows(source, name, path, cast(BinaryIO, whole), bad)


def _text(name: str, path: Path, stream: BinaryIO, bad: BadRecords) -> Iterator[Document]:
    data = read_bounded(stream, bad.max_document_bytes)
    if data is None:
        bad.report_too_long(str(path))
        return
    try:
        yield Document(name, data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        bad.report("not UTF-8", f"{path} line {line}: not UTF-8 ({error.reason}); convert it")


def _json_lines(
    source: FilesSource, name: str, path: Path, stream: BinaryIO, bad: BadRecords
) -> Iterator[Document]:
    for number, where, line in bad.lines(stream, str(path)):
        record = json_value(line, where, bad)
        if record is not BAD:
            yield from _record(source, name, where, number, record, bad)


def _record(
    source: FilesSource, name: str, where: str, number: int, record: Any, bad: BadRecords
) -> Iterator[Document]:
    """The document of one line or row: none if it has no text or no id."""
    text = record.get(source.text_field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        bad.report(
            "no text",
            f"{where}: no string under {source.text_field!r} ({_found(record, source.text_field)});"
            " set text_field to the key that holds the text",
        )
        return
    id = number if source.id_field is None else record.get(source.id_field)
    if isinstance(id, bool) or not isinstance(id, str | int):
        bad.report(
            "no id",
            f"{where}: no string or whole number under {source.id_field!r}"
            f" ({_found(record, source.id_field)}); set id_field to the key that holds the id, or"
            " remove it",
        )
        return
    yield Document(f"{name}#{id}", text)


def _found(record: Any, key: str | None) -> str:
    """What is there instead of the value that was expected under ``key``."""
    if not isinstance(record, dict):
        return f"the record is a {type(record).__name__}"
    if key in record:
        return f"found: {type(record[key]).__name__}"
    return f"found: {sorted(record)}"


def _parquet_rows(
    source: FilesSource, name: str, path: Path, readable: Path | BinaryIO, bad: BadRecords
) -> Iterator[Document]:
    """Rows of ``readable``, which is ``path`` or what it decompresses to."""
    # pre_buffer would load whole row groups.
    with pq.ParquetFile(readable, pre_buffer=False, buffer_size=_READ_BYTES) as file:
        columns = [c for c in (source.text_field, source.id_field) if c is not None]
        _check_columns(path, columns, file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            values = [_plain_values(batch.column(column)) for column in columns]
            for row in zip(*values, strict=True):
                record = dict(zip(columns, row, strict=True))
                where = f"{path} row {number}"
                try:
                    record = {k: _decoded(v) for k, v in record.items()}
                except UnicodeDecodeError as error:
                    bad.report("not UTF-8", f"{where}: not UTF-8 ({error.reason}); convert it")
                else:
                    yield from _record(source, name, where, number, record, bad)
                number += 1


def _check_columns(path: Path, wanted: list[str], names: list[str]) -> None:
    for column in wanted:
        if (count := names.count(column)) != 1:
            found = f"{count} columns" if count else "no column"
            raise UserError(
                f"{path}: {found} {column!r} (columns: {sorted(names)}); set text_field and"
                " id_field to those that hold text and id"
            )


def _plain_values(column: pa.Array) -> list[Any]:
    """Values of a column, strings as bytes: Arrow decodes a whole batch or nothing."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.binary_view())
    elif pa.types.is_string(column.type):
        column = column.cast(pa.binary())
    elif pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return column.to_pylist()


def _decoded(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
