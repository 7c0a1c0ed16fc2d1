from __future__ import annotations

from pathlib import Path

import pytest

from wrinklefree.config.sources import FilesSource
from wrinklefree.data.sources.files import documents
from wrinklefree.errors import UserError


def source(*paths: str, text_field: str = "text") -> FilesSource:
    return FilesSource(
        kind="files", domain="d", licence="l", paths=list(paths), text_field=text_field
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_are_read_once_each_in_sorted_order(here: Path) -> None:
    (here / "b").mkdir()
    (here / "b" / "x.txt").write_text("zwei\n", encoding="utf-8")
    (here / "a.jsonl").write_text('{"text": "eins", "n": 1}\n\n{"text": "é"}\n', encoding="utf-8")
    found = list(documents(source("**/*.txt", "b/*", "*.jsonl"), cache=here))
    assert found == [("a.jsonl#1", "eins"), ("a.jsonl#3", "é"), ("b/x.txt", "zwei\n")]


def test_text_field_chooses_the_key(here: Path) -> None:
    (here / "a.jsonl").write_text('{"text": "no", "body": "yes"}\n')
    assert [d.text for d in documents(source("*.jsonl", text_field="body"), cache=here)] == ["yes"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl line 2: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "a"}\n', r"a\.jsonl line 2: no string under 'text'"),
        ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl line 1: no string under 'text'"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl line 1: no string under 'text'"),
        ("a.jsonl", b'\n{"text": "\xff"}\n', r"a\.jsonl line 2: not UTF-8"),
        ("a.txt", b"a\nb\n\xff", r"a\.txt line 3: not UTF-8"),
        ("a.csv", b"a", r"a\.csv is neither \.txt nor \.jsonl"),
    ],
)
def test_bad_file_is_named_with_its_line(here: Path, name: str, data: bytes, message: str) -> None:
    (here / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        list(documents(source("a.*"), cache=here))


def test_glob_without_files_is_an_error_even_beside_one_that_has_some(here: Path) -> None:
    (here / "a.txt").write_text("a")
    with pytest.raises(UserError, match=r"no file matches 'b\*\.txt'"):
        list(documents(source("a.txt", "b*.txt"), cache=here))
