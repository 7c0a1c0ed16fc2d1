"""Files of this machine, by globs or of a folder, their names and one digest over all of them."""

from __future__ import annotations

import glob
import hashlib
import os
from pathlib import Path

from wrinklefree.errors import UserError
from wrinklefree.tracking.files import sha256_of_file


def find_files(patterns: list[str]) -> dict[str, Path]:
    """Path by name of every file that some pattern finds, once each, sorted by name.

    A pattern is a path or a glob, absolute or relative to the working folder; ``**`` crosses
    folders. The name of a file below the working folder is its path from there. Of a file elsewhere
    it is the path from the deepest folder that holds all such files: names, which become ids, don't
    depend on where a machine keeps its data. A file that links give several paths has the shortest.
    Raises UserError for a pattern without files, for a link to nothing and whatever else is neither
    file nor folder, and if two files get one name.
    """
    found: set[Path] = set()
    for pattern in patterns:
        # Of Path, is_file raises for a name too long, and glob takes no absolute pattern.
        matches = [pattern] if os.path.isfile(pattern) else glob.glob(pattern, recursive=True)  # noqa: PTH113, PTH207
        files = {Path(os.path.abspath(path)) for path in matches if not os.path.isdir(path)}  # noqa: PTH100, PTH112 (links keep their name)
        if not files:
            raise UserError(
                f"no file matches {pattern!r} in {Path.cwd()}; paths are paths or globs, absolute"
                " or relative to the project folder, and ** crosses folders"
            )
        found |= files
    found = _each_once(found)
    here = Path.cwd()
    elsewhere = [path for path in found if not path.is_relative_to(here)]
    top = Path(os.path.commonpath([path.parent for path in elsewhere])) if elsewhere else here
    named: dict[str, Path] = {}
    for path in sorted(found):
        name = path.relative_to(here if path.is_relative_to(here) else top).as_posix()
        if name in named:
            raise UserError(
                f"{named[name]} and {path} would both be called {name}; rename one of them or make"
                " them two sources"
            )
        named[name] = path
    return dict(sorted(named.items()))


def files_of_folder(folder: Path) -> dict[str, Path]:
    """Path by name of every file in ``folder``, at any depth; a name is the path from there.

    What is hidden (``.git``, ``.cache``) doesn't count. Raises UserError if there is no file.
    """
    named = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    files = {
        name.as_posix(): path
        for name, path in sorted(named.items())
        if not any(part.startswith(".") for part in name.parts)
    }
    if not files:
        raise UserError(f"{folder} has no files in it; give the folder that has")
    return files


def _each_once(paths: set[Path]) -> set[Path]:
    """One path of each file: a link to a folder above it would give dozens."""
    by_target: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: (len(path.parts), path)):
        target = os.path.realpath(path)
        if not os.path.isfile(target):  # noqa: PTH113
            what = "a link to nothing" if path.is_symlink() else "neither a file nor a folder"
            raise UserError(f"{path} is {what}; remove it or narrow the globs in paths")
        by_target.setdefault(target, path)
    return set(by_target.values())


def digest_of_files(files: dict[str, Path]) -> str:
    """Hexadecimal SHA-256 over the names and contents of ``files`` (path by name), sorted.

    It is that of the lines that ``sha256sum`` prints for the sorted names. Raises UserError for a
    file that can't be read.
    """
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        try:
            found = sha256_of_file(path)
        except OSError as error:
            raise UserError(f"{path} can't be read: {error.strerror}; make it readable") from error
        digest.update(f"{found}  {name}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
