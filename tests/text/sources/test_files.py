from __future__ import annotations

import gzip
import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pydantic import ValidationError

from wrinklefree.downloads.local_files import digest_of_files, find_files
from wrinklefree.errors import UserError
from wrinklefree.text.documents.document import Document
from wrinklefree.text.documents.settings import FilesSource
from wrinklefree.text.sources import files
from wrinklefree.text.sources.bad_records import BadRecords, BadRecordWarning
from wrinklefree.text.sources.files import documents

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}


def source(*paths: str, **settings: Any) -> FilesSource:
    if "sha256" not in settings:
        settings["sha256"] = digest_of_files(find_files(list(paths)))
    return FilesSource(kind="files", domain="d", licence="l", paths=list(paths), **settings)


def read(*paths: str, bad: BadRecords | None = None, **settings: Any) -> list[Document]:
    found = documents(source(*paths, **settings), cache=Path("cache"), bad=bad or BadRecords())
    return list(found)


def parquet(path: Path, **columns: Any) -> bytes:
    pq.write_table(pa.table(columns), path)
    return path.read_bytes()


def test_files_are_read_once_each_in_sorted_order(here: Path) -> None:
    (here / "b").mkdir()
    (here / "b" / "x.txt").write_text("zwei\n", encoding="utf-8")
    (here / "a.jsonl").write_text('{"text": "eins", "n": 1}\n\n{"text": "é"}\n', encoding="utf-8")
    found = read("**/*.txt", "b/*", "*.jsonl", str(here / "b" / "x.txt"))
    assert found == [("a.jsonl#1", "eins"), ("a.jsonl#3", "é"), ("b/x.txt", "zwei\n")]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_format_reads_alike_plain_and_compressed(here: Path, suffix: str) -> None:
    texts = ["eins", "zwei\nzwei", "drei ü"]
    contents = {
        "a.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in texts).encode(),
        "b.parquet": parquet(here / "b.parquet", text=texts),
        "c.txt": b"\xef\xbb\xbf" + "c\nü".encode(),
    }
    (here / "b.parquet").unlink()
    for name, data in contents.items():
        (here / (name + suffix)).write_bytes(COMPRESS[suffix](data))
    assert read("*") == [
        *((f"a.jsonl{suffix}#{number}", text) for number, text in enumerate(texts, start=1)),
        *((f"b.parquet{suffix}#{number}", text) for number, text in enumerate(texts)),
        (f"c.txt{suffix}", "c\nü"),
    ]
    assert not list((here / "cache").glob("*") if (here / "cache").exists() else [])


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_parts_that_follow_each_other_are_all_read(here: Path, suffix: str) -> None:
    parts = [COMPRESS[suffix](part) for part in (b'{"text": "a"}\n', b'{"text": "b"}\n')]
    (here / f"a.jsonl{suffix}").write_bytes(b"".join(parts))
    assert [document.text for document in read("*")] == ["a", "b"]


def test_text_field_and_id_field_choose_keys_and_columns(here: Path) -> None:
    (here / "a.jsonl").write_text('{"text": "no", "body": "yes", "key": "k1"}\n')
    parquet(here / "b.parquet", text=["no"], body=pa.array(["yes"]).dictionary_encode(), key=[7])
    parquet(here / "c.parquet", body=pa.array(["yes"], pa.large_string()), key=["ü"])
    assert read("*", text_field="body", id_field="key") == [
        ("a.jsonl#k1", "yes"),
        ("b.parquet#7", "yes"),
        ("c.parquet#ü", "yes"),
    ]


BAD = [
    ("a.jsonl", b'{"text": "a"}\n{"text": \n', "not JSON", r"a\.jsonl line 2: not JSON"),
    ("a.jsonl", b'{"text": ' + b"[" * 200_000, "not JSON", r"a\.jsonl line 1: not JSON"),
    ("a.jsonl", b'{"text": ' + b"1" * 5000 + b"}", "not JSON", r"a\.jsonl line 1: not JSON"),
    ("a.jsonl", b'{"text": "a"}\n{"txt": "a"}\n', "no text", r"a\.jsonl line 2: no string under"),
    ("a.jsonl", b'{"text": 3}\n', "no text", r"a\.jsonl line 1: no string under 'text'"),
    ("a.jsonl", b"[1]\n", "no text", r"a\.jsonl line 1: no string under 'text'.*is a list"),
    (
        "a.jsonl",
        b'{"text": "a", "text": "b"}\n',
        "not JSON",
        r"line 1: not JSON.*'text' comes twice",
    ),
    ("a.jsonl", b'\n{"text": "\xff"}\n', "not UTF-8", r"a\.jsonl line 2: not UTF-8"),
    ("a.jsonl", b"x" * 4_000_000, "too long", r"a\.jsonl line 1: the text is longer"),
    ("a.txt", b"a\nb\n\xff", "not UTF-8", r"a\.txt line 3: not UTF-8"),
    ("a.txt.gz", gzip.compress(b"x" * 400_000), "too long", r"a\.txt\.gz: the text is longer"),
]


@pytest.mark.parametrize(("name", "data", "reason", "message"), BAD)
def test_bad_record_is_named_or_skipped_and_counted(
    here: Path, name: str, data: bytes, reason: str, message: str
) -> None:
    (here / name).write_bytes(data)
    (here / "z.txt").write_text("good")
    with pytest.raises(UserError, match=message + ".*on_bad_record: skip"):
        read("*", bad=BadRecords("error", 300_000))
    bad = BadRecords("skip", 300_000)
    with pytest.warns(BadRecordWarning, match=message):
        assert read("*", bad=bad)[-1] == ("z.txt", "good")
    assert bad.counts == {reason: 1}


def test_bad_rows_of_parquet_are_skipped_alone(here: Path) -> None:
    broken = pa.array([b"a", b"\xff", None, b"d"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 4, broken.buffers())
    parquet(here / "a.parquet", text=text)
    with pytest.raises(UserError, match=r"a\.parquet row 1: not UTF-8"):
        read("*")
    bad = BadRecords("skip")
    with pytest.warns(BadRecordWarning):
        assert read("*", bad=bad) == [("a.parquet#0", "a"), ("a.parquet#3", "d")]
    assert bad.counts == {"not UTF-8": 1, "no text": 1}


@pytest.mark.parametrize("id", ["null", "true", "1.5"])
def test_record_without_the_id_is_bad(here: Path, id: str) -> None:
    (here / "a.jsonl").write_text(f'{{"text": "a", "id": {id}}}\n')
    with pytest.raises(
        UserError, match=r"line 1: no string or whole number under 'id' \(found: \w+\)"
    ):
        read("*", id_field="id")


def test_only_the_first_bad_records_are_shown_and_all_are_counted(here: Path) -> None:
    (here / "a.jsonl").write_text("bad\n" * 50)
    bad = BadRecords("skip")
    with pytest.warns(BadRecordWarning) as shown:
        read("*", bad=bad)
    assert bad.counts == {"not JSON": 50}
    assert [re.findall(r"line (\d+): not", str(warning.message)) for warning in shown] == [
        ["1"],
        ["2"],
        ["3"],
    ]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("action", ["error", "skip"])
@pytest.mark.parametrize("kind", ["a.jsonl", "a.txt", "a.parquet"])
def test_archive_that_was_cut_is_an_error_whatever_is_skipped(
    here: Path, kind: str, action: Any, suffix: str
) -> None:
    count = 90_000 if kind == "a.txt" else 5_000  # more text than what is read at once
    lines = b"".join(b'{"text": "%d"}\n' % (n * n) for n in range(count))
    data = parquet(here / "x", text=["a"] * 9) if kind == "a.parquet" else lines
    (here / (kind + suffix)).write_bytes(COMPRESS[suffix](data)[:-20])
    with pytest.raises(UserError, match=rf"{kind}{suffix}: can't be read to its end"):
        read(kind + suffix, bad=BadRecords(action, 50_000))


@pytest.mark.parametrize("kind", ["a.jsonl", "a.txt", "a.parquet"])
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_file_without_a_byte_is_an_error(here: Path, kind: str, suffix: str) -> None:
    (here / (kind + suffix)).touch()
    with pytest.raises(UserError, match="can't be read to its end.*no byte"):
        read("*", bad=BadRecords("skip"))


def test_broken_text_in_a_column_of_views_is_skipped_alone(here: Path) -> None:
    plain = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"b"], pa.binary()).buffers())
    parquet(here / "a.parquet", text=plain.cast(pa.string_view()))
    with pytest.warns(BadRecordWarning, match=r"a\.parquet row 0: not UTF-8"):
        assert read("*", bad=BadRecords("skip")) == [("a.parquet#1", "b")]


def test_column_that_is_there_twice_is_an_error(here: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, here / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: 2 columns 'text'"):
        read("*")


def test_longest_document_that_may_be_asked_for_is_read(here: Path) -> None:
    (here / "a.txt").write_text("a")
    longest = source("*", max_document_megabytes=1024).max_document_megabytes
    assert read("*", bad=BadRecords("error", longest * 2**20)) == [("a.txt", "a")]
    with pytest.raises(ValidationError, match="less than or equal to 1024"):
        source("*", max_document_megabytes=1025)


def test_nothing_is_left_of_a_decompression_that_was_killed(here: Path) -> None:
    data = parquet(here / "x", text=["a", "b"])
    (here / "a.parquet.gz").write_bytes(gzip.compress(data))
    found = documents(source("*.gz"), cache=here / "cache", bad=BadRecords())
    next(found)
    assert not list((here / "cache").iterdir())


def test_truncated_parquet_names_the_file(here: Path) -> None:
    data = parquet(here / "a.parquet", text=["a"] * 1000)
    (here / "a.parquet").write_bytes(data[:-100])
    with pytest.raises(UserError, match=r"a\.parquet: can't be read to its end"):
        read("*", bad=BadRecords("skip"))


def test_missing_column_lists_those_there_are(here: Path) -> None:
    parquet(here / "a.parquet", body=["a"], id=["i"])
    with pytest.raises(UserError, match=r"no column 'text' \(columns: \['body', 'id'\]\)"):
        read("*", bad=BadRecords("skip"))


def test_other_file_type_is_named(here: Path) -> None:
    (here / "a.csv").write_text("a")
    with pytest.raises(UserError, match=r"a\.csv is neither \.txt nor \.jsonl nor \.parquet"):
        read("a.*")


def test_edit_of_a_file_is_noticed_before_anything_is_read(here: Path) -> None:
    (here / "a.txt").write_text("a")
    settings = source("*.txt")
    assert list(documents(settings, cache=here, bad=BadRecords())) == [("a.txt", "a")]
    (here / "a.txt").write_text("b")
    found = digest_of_files(find_files(["*.txt"]))
    with pytest.raises(UserError, match=rf"(?s){found}.*{settings.sha256}.*wrinklefree hash"):
        next(documents(settings, cache=here, bad=BadRecords()))


def test_file_that_changes_behind_its_digest_is_an_error(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "a.txt").write_text("a")
    settings = source("*")

    def digest_and_change(found: dict[str, Path]) -> str:
        digest = digest_of_files(found)
        (here / "a.txt").write_text("changed")
        return digest

    monkeypatch.setattr(files, "digest_of_files", digest_and_change)
    with pytest.raises(UserError, match="changed while it was read"):
        list(documents(settings, cache=here, bad=BadRecords()))


def test_file_that_changes_while_it_is_read_is_an_error(here: Path) -> None:
    (here / "a.jsonl").write_text('{"text": "a"}\n')
    found = documents(source("*"), cache=here, bad=BadRecords())
    next(found)
    (here / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    with pytest.raises(UserError, match="changed while it was read"):
        list(found)


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.parquet"])
def test_memory_does_not_grow_with_the_file(here: Path, name: str) -> None:
    texts = [f"{n} " * 500 for n in range(8000)]  # 22 MB
    if name == "a.parquet":
        table = pa.table({"text": texts})
        pq.write_table(table, here / name, compression="none", use_dictionary=False)
        del table
    else:
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (here / name).write_bytes(zstandard.compress(lines.encode()))
    size, arrow = sum(map(len, texts)), pa.total_allocated_bytes()
    del texts
    tracemalloc.start()
    count, most_of_arrow = 0, 0
    for _ in documents(source(name), cache=here, bad=BadRecords()):
        count += 1
        most_of_arrow = max(most_of_arrow, pa.total_allocated_bytes() - arrow)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 8000
    assert most + most_of_arrow < size / 2
