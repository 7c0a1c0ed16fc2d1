"""Which code of this project a script depends on, found by reading imports, and its digests.

An engine knows the folders: it reruns a stage when a file in one of them is edited, and no other
stage. The stage knows the modules: where none that it imports was edited, it puts back what it
made. Imports inside functions count, and so do the ``__init__.py`` of the packages above a module.
Comments, docstrings and layout are no code: the digests are over what Python compiles.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

PACKAGE = "wrinklefree"

# Text is searched rather than parsed: an engine does it for all stages at every start. What only
# looks like an import, in a docstring, makes a dependency too many and never one too few.
_IMPORT = re.compile(
    rf"""^[ \t]*(?:
        from[ \t]+(?P<module>{PACKAGE}[\w.]*)[ \t]+import[ \t]+(?P<names>\([^)]*\)|[^\n]*)
        | import[ \t]+(?P<modules>{PACKAGE}[^\n]*)
    )""",
    re.MULTILINE | re.VERBOSE,
)
_BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")
"""Fields of a statement that hold statements."""
_RELATIVE = re.compile(r"^[ \t]*from[ \t]+\.", re.MULTILINE)


def code_parts(script: Path, source: Path) -> list[Path]:
    """``script``, and the folders and top-level files of the package that it depends on, sorted.

    A stage depends on whole folders: those that hold a module that it imports, directly or not. A
    folder stands for what is below it, too. A module without code, which an ``__init__.py``
    usually is, counts for nothing.

    Parameters
    ----------
    source : the folder that holds the package's folder (``src``).
    """
    files = [file for file in imported_files(script, source) if compiled_text(file.read_bytes())]
    package = source / PACKAGE
    parts = {file if file.parent == package else file.parent for file in files if file != script}
    return [script, *sorted(part for part in parts if parts.isdisjoint(part.parents))]


def imported_files(script: Path, source: Path) -> list[Path]:
    """``script`` and every module of the package that it imports, directly or not, sorted."""
    found = {script}
    names: set[str] = set()
    pending = [script]
    while pending:
        for name in _imported_modules(pending.pop().read_bytes()) - names:
            names.add(name)
            stem = source.joinpath(*name.split("."))
            for file in (stem / "__init__.py", stem.with_suffix(".py")):
                if file not in found and file.is_file():
                    found.add(file)
                    pending.append(file)
    return sorted(found)


def code_digest(script: Path, source: Path) -> str:
    """SHA-256 over names and code of :func:`imported_files`: equal where the same code runs."""
    return _digest(imported_files(script, source), source)


def folders_digest(script: Path, source: Path) -> str:
    """SHA-256 over names and code of all files in :func:`code_parts`: what an engine watches."""
    parts = code_parts(script, source)
    return _digest(
        [file for p in parts for file in (p.rglob("*.py") if p.is_dir() else [p])], source
    )


def _digest(files: Iterable[Path], source: Path) -> str:
    """Wherever the files lie; those without code count for nothing."""
    named = {
        (file.relative_to(source).as_posix() if file.is_relative_to(source) else file.name): file
        for file in files
    }
    digest = hashlib.sha256()
    for name, file in sorted(named.items()):
        if content := compiled_text(file.read_bytes()):
            digest.update(f"{name}\0{len(content)}\0{content}".encode())
    return digest.hexdigest()


@cache
def compiled_text(content: bytes) -> str:
    """What Python compiles of a module, in one spelling: without comments, docstrings, layout."""
    tree = ast.parse(content)
    _drop_texts(tree)
    return ast.unparse(tree)


def _drop_texts(node: ast.AST) -> None:
    """Remove docstrings from every block below ``node``; expressions hold no blocks."""
    for field in _BLOCKS:
        if block := getattr(node, field, None):
            block[:] = [part for part in block if not _is_text(part)]
            for part in block:
                _drop_texts(part)


def _is_text(node: object) -> bool:
    """Whether a statement is a string and nothing else: a docstring, of whatever."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


@cache
def _imported_modules(content: bytes) -> frozenset[str]:
    """Names that may be modules: ``from a.b import c`` yields ``a``, ``a.b`` and ``a.b.c``."""
    text = content.decode()
    assert not _RELATIVE.search(text), f"import by the absolute name: {_RELATIVE.search(text)}"
    names: set[str] = set()
    for match in _IMPORT.finditer(text):
        names.update(re.findall(r"[\w.]+", match["modules"] or ""))
        if module := match["module"]:
            names.update(f"{module}.{name}" for name in re.findall(r"\w+", match["names"]))
    parts = [name.split(".") for name in names if name.split(".")[0] == PACKAGE]
    return frozenset(".".join(name[:depth]) for name in parts for depth in range(1, len(name) + 1))
