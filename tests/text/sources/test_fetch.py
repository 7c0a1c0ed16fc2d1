from __future__ import annotations

import errno
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from wrinklefree.downloads.local_files import digest_of_files, find_files
from wrinklefree.errors import UserError
from wrinklefree.text.documents import parquet as documents
from wrinklefree.text.documents.document import Document
from wrinklefree.text.documents.parquet import DOCUMENTS_FILE, read_domain, read_texts
from wrinklefree.text.documents.settings import FilesSource, GeneratedSource, HeldOutSettings
from wrinklefree.text.sources import SOURCES, fetch
from wrinklefree.text.sources.bad_records import BadRecordWarning
from wrinklefree.text.sources.fetch import fetch_source, split_of
from wrinklefree.tracking.artifact import Origin, open_artifact, writing_artifact

NOTHING = HeldOutSettings(fraction=0.0)
TENTH = HeldOutSettings(fraction=0.1)


def generated(**settings: Any) -> GeneratedSource:
    defaults = {"domain": "maths", "licence": "CC0", "documents": 400, "seed": 3}
    return GeneratedSource(kind="generated", generator="mathematics", **{**defaults, **settings})


def written(tmp_path: Path, texts: list[str], **settings: Any) -> FilesSource:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "texts.jsonl").write_text(lines)
    paths = [str(tmp_path / "texts.jsonl")]
    sha256 = digest_of_files(find_files(paths))
    return FilesSource(
        kind="files", domain="d", licence="l", paths=paths, sha256=sha256, **settings
    )


def rows(folder: Path) -> list[dict[str, str]]:
    return pq.read_table(folder / DOCUMENTS_FILE).to_pylist()


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        fetch_source("maths", generated(), TENTH, tmp_path / name, cache=tmp_path)
        files.append((tmp_path / name / DOCUMENTS_FILE).read_bytes())
    assert files[0] == files[1]


def test_empty_documents_are_dropped_and_counted_and_repeated_ones_are_kept(tmp_path: Path) -> None:
    source = written(tmp_path, ["one", " \n\t", "zwö", "one", "", "one "])
    facts = fetch_source("s", source, NOTHING, tmp_path, cache=tmp_path)
    assert [row["text"] for row in rows(tmp_path)] == ["one", "zwö", "one", "one "]
    assert facts == {
        "documents": 4,
        "bytes": 3 + 4 + 3 + 4,
        "held_out_documents": 0,
        "held_out_bytes": 0,
        "dropped_empty": 2,
        "bad_records": {},
        "stopped_by": "source",
        "domain": "d",
        "licence": "l",
        "sha256": source.sha256,
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
        for fraction in (0.0, 0.02, 0.1, 0.9)
    }
    assert not held[0.0]
    assert held[0.02] < held[0.1] < held[0.9] < set(texts)
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
    facts = fetch_source("s", source, NOTHING, tmp_path, cache=tmp_path)
    assert [row["split"] for row in rows(tmp_path)] == ["train", "held_out", "held_out"]
    assert facts["held_out_documents"] == 2


def test_held_out_levels_are_never_trained_on_and_grow_no_other_split(tmp_path: Path) -> None:
    source = generated(levels=[1, 2], held_out_levels=[4, 5], held_out_level_interval=20)
    facts = fetch_source("maths", source, TENTH, tmp_path, cache=tmp_path)
    splits: dict[str, set[str]] = {}
    for row in rows(tmp_path):
        splits.setdefault(row["id"].split("/")[2], set()).add(row["split"])
    both = {"train", "held_out"}
    held_out = {"held_out"}
    assert splits == {"level1": both, "level2": both, "level4": held_out, "level5": held_out}
    drawn = fetch_source("maths", generated(levels=[1, 2]), TENTH, tmp_path, cache=tmp_path)
    assert 15 <= facts["held_out_documents"] - drawn["held_out_documents"] <= 20


@pytest.mark.parametrize(("limit", "stopped_by"), [(2, "max_documents"), (4, "source")])
def test_max_documents_takes_the_first(tmp_path: Path, limit: int, stopped_by: str) -> None:
    source = written(tmp_path, ["a", "b", "c"], max_documents=limit)
    facts = fetch_source("s", source, NOTHING, tmp_path, cache=tmp_path)
    assert [row["text"] for row in rows(tmp_path)] == ["a", "b", "c"][:limit]
    assert facts["stopped_by"] == stopped_by


@pytest.mark.parametrize(
    ("settings", "documents", "stopped_by"),
    [
        ({"max_tokens": 10}, 6, "max_tokens"),
        ({"max_tokens": 10, "fetch_bytes_per_token": 2.0}, 2, "max_tokens"),
        ({"max_tokens": 10_000}, 20, "source"),
        ({"max_tokens": 10, "max_documents": 3}, 3, "max_documents"),
    ],
)
def test_max_tokens_stops_when_the_training_text_is_sure_to_hold_them(
    tmp_path: Path, settings: dict[str, Any], documents: int, stopped_by: str
) -> None:
    texts = [f"{n:010d}" for n in range(20)]
    facts = fetch_source(
        "s", written(tmp_path, texts, **settings), NOTHING, tmp_path, cache=tmp_path
    )
    assert (facts["documents"], facts["stopped_by"]) == (documents, stopped_by)


def test_max_tokens_counts_no_held_out_text(tmp_path: Path) -> None:
    texts = [f"{n:010d}" for n in range(40)]
    source = written(tmp_path, texts, max_tokens=10, held_out_pattern="[02468]$")
    facts = fetch_source("s", source, NOTHING, tmp_path, cache=tmp_path)
    assert (facts["documents"], facts["held_out_documents"]) == (11, 5)


def test_max_tokens_reads_no_further_than_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    endless = (Document(str(n), "x" * 10) for n in itertools.count())

    def documents_read(source: Any, *, cache: Path, bad: Any) -> Iterator[Document]:
        for document in endless:
            read.append(document.id)
            yield document

    monkeypatch.setitem(SOURCES, "generated", documents_read)
    monkeypatch.setattr(fetch, "is_of_held_out_level", lambda source, document: False)
    facts = fetch_source("s", generated(max_tokens=10), NOTHING, tmp_path, cache=tmp_path)
    assert len(read) == facts["documents"] == 6


def test_bytes_per_token_without_tokens_is_refused() -> None:
    with pytest.raises(ValidationError, match="has a meaning with max_tokens only"):
        generated(fetch_bytes_per_token=5.0)


def test_source_without_documents_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source s has no documents \(2 empty"):
        fetch_source("s", written(tmp_path, ["", " "]), TENTH, tmp_path, cache=tmp_path)


BAD = [
    ("b\ud800", "no UTF-8 form", r"texts\.jsonl#2.*no UTF-8 form"),
    ("b\0b", "NUL character", r"texts\.jsonl#2.*NUL at character 1"),
    ("b" * (2**20 + 1), "too long", r"texts\.jsonl#2.*longer than 1 MiB"),
]


@pytest.mark.parametrize(("text", "reason", "message"), BAD)
def test_bad_text_is_named_or_skipped_and_counted(
    tmp_path: Path, text: str, reason: str, message: str
) -> None:
    texts = ["a", text, "c" * 2**20]
    with pytest.raises(UserError, match=message):
        source = written(tmp_path, texts, max_document_megabytes=1)
        fetch_source("s", source, NOTHING, tmp_path, cache=tmp_path)
    source = written(tmp_path, texts, max_document_megabytes=1, on_bad_record="skip")
    with pytest.warns(BadRecordWarning, match=message):
        facts = fetch_source("s", source, NOTHING, tmp_path, cache=tmp_path)
    assert [row["text"][:1] for row in rows(tmp_path)] == ["a", "c"]
    assert facts["bad_records"] == {reason: 1}


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_full_disk_and_interruption_leave_the_former_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    target = tmp_path / "raw" / "maths"
    origin = Origin("fetch", {}, {})
    with writing_artifact(target, origin) as (folder, _):
        (folder / "former").write_text("stands")
    write_table = pq.ParquetWriter.write_table

    def fail_at_second(writer: pq.ParquetWriter, table: Any) -> None:
        if getattr(writer, "second", False):
            raise error
        writer.second = True  # type: ignore[attr-defined]
        write_table(writer, table)

    monkeypatch.setattr(documents, "ROW_GROUP_BYTES", 1000)
    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail_at_second)
    with pytest.raises(type(error)), writing_artifact(target, origin) as (folder, facts):
        facts |= fetch_source("maths", generated(), TENTH, folder, cache=tmp_path)
    assert [path.name for path in target.parent.iterdir()] == ["maths"]
    assert sorted(open_artifact(target).manifest.files) == [".wrinklefree", "former"]
