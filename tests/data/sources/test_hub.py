from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from wrinklefree.config.sources import HubSource
from wrinklefree.data.sources.hub import documents
from wrinklefree.errors import UserError


def source(dataset: str, text_field: str = "text") -> HubSource:
    return HubSource(
        kind="hub", domain="d", licence="l", dataset=dataset, revision="main", text_field=text_field
    )


@pytest.fixture
def local_dataset(tmp_path: Path) -> str:
    (tmp_path / "train.jsonl").write_text(
        '{"text": "one", "body": "1"}\n{"text": "two", "body": "2"}\n'
    )
    return str(tmp_path)


def test_missing_library_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'wrinklefree\[hub\]'"):
        next(documents(source("some/dataset"), cache=tmp_path))


def test_rows_are_documents_in_order(local_dataset: str, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    assert list(documents(source(local_dataset), cache=tmp_path)) == [("0", "one"), ("1", "two")]
    assert [d.text for d in documents(source(local_dataset, "body"), cache=tmp_path)] == ["1", "2"]


def test_missing_column_lists_those_there_are(local_dataset: str, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(UserError, match=r"no string under 'content'.*'body', 'text'"):
        list(documents(source(local_dataset, "content"), cache=tmp_path))


def test_unknown_data_set_is_named(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(UserError, match="cannot open data set"):
        list(documents(source(str(tmp_path / "absent")), cache=tmp_path))
