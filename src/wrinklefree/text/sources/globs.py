"""Globs over slash-separated paths that need not exist on disk (members of a wheel)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from wrinklefree.errors import UserError

_PART = re.compile(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)


@lru_cache(maxsize=1024)
def glob_pattern(glob: str) -> re.Pattern[str]:
    """Compile a glob.

    ``*`` and ``?`` stay within a folder, ``**/`` stands for any number of folders (none as well), a
    trailing ``**`` for everything below, ``[ab]`` and ``[!ab]`` for one character. Raises UserError
    for a range of characters that runs backwards.
    """
    pattern = "".join(_translate(part) for part in _PART.findall(glob)) + r"\Z"
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise UserError(
            f"{glob!r} in include or exclude is no glob ({error.msg}); a range in brackets runs"
            " upwards, as [a-z]"
        ) from error


def _translate(part: str) -> str:
    if part == "**/":
        return "(?:[^/]+/)*"
    if part == "**":
        return ".*"
    if part == "*":
        return "[^/]*"
    if part == "?":
        return "[^/]"
    if part.startswith("[") and len(part) > 2:
        negated = part[1] == "!"
        inside = part[2 if negated else 1 : -1].replace("\\", "\\\\").replace("^", "\\^")
        return f"(?!/)[{'^' if negated else ''}{inside.replace('[', chr(92) + '[')}]"
    return re.escape(part)


def selects(path: str, include: Iterable[str], exclude: Iterable[str]) -> bool:
    """Whether ``path`` matches one of ``include`` and none of ``exclude``."""
    return any(glob_pattern(glob).match(path) for glob in include) and not any(
        glob_pattern(glob).match(path) for glob in exclude
    )
