from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from wrinklefree.config.sources import FilesSource, GeneratedSource, HeldOutSettings
from wrinklefree.data import documents
from wrinklefree.data.document import Document
from wrinklefree.data.documents import DOCUMENTS_FILE, read_domain, read_texts
from wrinklefree.data.fetch import fetch_source, split_of
from wrinklefree.errors import UserError

TENTH = HeldOutSettings(fraction=0.1)


def generated(**settings: Any) -> GeneratedSource:
    defaults = {"domain": "maths", "licence": "CC0", "documents": 400, "seed": 3}
    return GeneratedSource(kind="generated", generator="mathematics", **{**defaults, **settings})


def written(tmp_path: Path, texts: list[str], **settings: Any) -> FilesSource:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "texts.jsonl").write_text(lines)
    paths = [str(tmp_path / "texts.jsonl")]
    return FilesSource(kind="files", domain="d", licence="l", paths=paths, **settings)


def rows(folder: Path) -> list[dict[str, str]]:
    return pq.read_table(folder / DOCUMENTS_FILE).to_pylist()


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        fetch_source("maths", generated(), TENTH, tmp_path / name, cache=tmp_path)
        files.append((tmp_path / name / DOCUMENTS_FILE).read_bytes())
    assert files[0] == files[1]


def test_empty_and_repeated_documents_are_dropped_and_counted(tmp_path: Path) -> None:
    source = written(tmp_path, ["one", " \n\t", "zwö", "one", "", "one "])
    facts = fetch_source("s", source, HeldOutSettings(fraction=0.0), tmp_path, cache=tmp_path)
    assert [row["text"] for row in rows(tmp_path)] == ["one", "zwö", "one "]
    assert facts == {
        "documents": 3,
        "bytes": 3 + 4 + 4,
        "held_out_documents": 0,
        "held_out_bytes": 0,
        "dropped_empty": 2,
        "dropped_duplicates": 1,
        "domain": "d",
        "licence": "l",
    }


def test_row_groups_bound_memory_and_keep_every_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "ROW_GROUP_BYTES", 1000)
    facts = fetch_source("maths", generated(), TENTH, tmp_path, cache=tmp_path)
    metadata = pq.read_metadata(tmp_path / DOCUMENTS_FILE)
    assert metadata.num_row_groups > 50
    assert metadata.num_rows == facts["documents"]
    sizes = [len(list(read_texts(tmp_path, split))) for split in ("train", "held_out")]
    assert sizes == [facts["documents"] - facts["held_out_documents"], facts["held_out_documents"]]
    assert read_domain(tmp_path) == "maths"


def test_held_out_share_follows_the_fraction_and_grows_with_it() -> None:
    source = generated()
    texts = [f"text {n}" for n in range(20_000)]
    held = {
        fraction: {
            text
            for text in texts
            if split_of(Document("i", text), source, HeldOutSettings(fraction=fraction))
            == "held_out"
        }
        for fraction in (0.0, 0.02, 0.1, 1.0)
    }
    assert not held[0.0]
    assert held[0.02] < held[0.1] < held[1.0] == set(texts)
    assert abs(len(held[0.02]) / 20_000 - 0.02) < 0.005


def test_a_text_is_on_the_same_side_in_every_source(tmp_path: Path) -> None:
    half = HeldOutSettings(fraction=0.5)
    texts = [f"ünlike {n}" for n in range(60)]
    splits = []
    for domain, order in (("a", texts), ("b", texts[::-1])):
        source = written(tmp_path, order).model_copy(update={"domain": domain})
        fetch_source(domain, source, half, tmp_path, cache=tmp_path)
        splits.append({row["text"]: row["split"] for row in rows(tmp_path)})
    assert splits[0] == splits[1]
    assert set(splits[0].values()) == {"train", "held_out"}


def test_pattern_holds_out_whole_documents_by_id(tmp_path: Path) -> None:
    source = written(tmp_path, ["a", "b", "c"], held_out_pattern="#[23]$")
    facts = fetch_source("s", source, HeldOutSettings(fraction=0.0), tmp_path, cache=tmp_path)
    assert [row["split"] for row in rows(tmp_path)] == ["train", "held_out", "held_out"]
    assert facts["held_out_documents"] == 2


def test_max_documents_takes_the_first(tmp_path: Path) -> None:
    source = written(tmp_path, ["a", "b", "c"], max_documents=2)
    fetch_source("s", source, TENTH, tmp_path, cache=tmp_path)
    assert [row["text"] for row in rows(tmp_path)] == ["a", "b"]


def test_source_without_documents_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source s has no documents \(2 empty"):
        fetch_source("s", written(tmp_path, ["", " "]), TENTH, tmp_path, cache=tmp_path)


def test_text_without_utf8_form_names_the_document(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"texts\.jsonl#2.*no UTF-8 form"):
        fetch_source("s", written(tmp_path, ["a", "b\ud800"]), TENTH, tmp_path, cache=tmp_path)
