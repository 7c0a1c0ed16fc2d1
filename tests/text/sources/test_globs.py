from __future__ import annotations

import pytest

from wrinklefree.errors import UserError
from wrinklefree.text.sources.globs import glob_pattern, selects


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("a/*.txt", "a/b.txt", True),
        ("a/*.txt", "a/c/b.txt", False),
        ("a/**/*.txt", "a/b.txt", True),
        ("a/**/*.txt", "a/c/d/b.txt", True),
        ("a/**/*.txt", "ab/b.txt", False),
        ("**/tests/**", "sympy/core/tests/test_x.py", True),
        ("**/tests/**", "sympy/core/mytests/x.py", False),
        ("a/**", "a/b/c", True),
        ("?.py", "x.py", True),
        ("?.py", "/.py", False),
        ("[ab].py", "a.py", True),
        ("[!ab].py", "a.py", False),
        ("[!ab].py", "c.py", True),
        ("a.py", "axpy", False),
        ("*.py", "x.pyc", False),
        ("*.txt", "a\nb.txt", True),
    ],
)
def test_glob_matches_whole_paths_and_only_double_stars_cross_folders(
    glob: str, path: str, matches: bool
) -> None:
    assert (glob_pattern(glob).match(path) is not None) is matches


def test_range_that_runs_backwards_is_named() -> None:
    with pytest.raises(UserError, match=r"'\[z-a\]\*' in include or exclude is no glob"):
        selects("a", ["[z-a]*"], [])


def test_exclude_wins_over_include() -> None:
    assert selects("a/b.py", ["**/*.py"], [])
    assert not selects("a/tests/b.py", ["**/*.py"], ["**/tests/**"])
    assert not selects("a/b.txt", ["**/*.py"], [])
