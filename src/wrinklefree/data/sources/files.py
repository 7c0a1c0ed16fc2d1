"""Documents in files on this machine."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from pathlib import Path

from wrinklefree.config.sources import FilesSource
from wrinklefree.data.document import Document
from wrinklefree.errors import UserError


def documents(source: FilesSource, *, cache: Path) -> Iterator[Document]:
    """Documents of all files that the globs find from the working folder, sorted by path.

    A ``.txt`` file is a document, its path the id; a line of a ``.jsonl`` file is one, with id
    ``<path>#<line number>``. Raises UserError for a glob without files, another file type, and with
    file and line for bad UTF-8, bad JSON or a missing text field. ``cache`` is not used.
    """
    for path in _paths(source.paths):
        if path.endswith(".txt"):
            yield Document(path, _text(path))
        else:
            yield from _json_lines(path, source.text_field)


def _paths(globs: list[str]) -> list[str]:
    found: set[str] = set()
    for pattern in globs:
        # Path.glob refuses absolute patterns.
        found_here = map(Path, glob.glob(pattern, recursive=True))  # noqa: PTH207
        matches = {path.as_posix() for path in found_here if path.is_file()}
        if not matches:
            raise UserError(
                f"no file matches {pattern!r} in {Path.cwd()}; paths are globs relative to the"
                " project folder, ** crosses folders"
            )
        if other := sorted(p for p in matches if not p.endswith((".txt", ".jsonl"))):
            raise UserError(
                f"{other[0]} is neither .txt nor .jsonl; narrow the glob {pattern!r} or convert it"
            )
        found |= matches
    return sorted(found)


def _text(path: str) -> str:
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} line {line}: not UTF-8 ({error.reason}); convert it") from error


def _json_lines(path: str, text_field: str) -> Iterator[Document]:
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path} line {number}"
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise UserError(f"{where}: not UTF-8 ({error.reason}); convert it") from error
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{where}: not JSON ({error}); expected one object a line"
                ) from error
            text = record.get(text_field) if isinstance(record, dict) else None
            if not isinstance(text, str):
                keys = sorted(record) if isinstance(record, dict) else type(record).__name__
                raise UserError(
                    f"{where}: no string under {text_field!r} (found: {keys}); set text_field to"
                    " the key that holds the text"
                )
            yield Document(f"{path}#{number}", text)
