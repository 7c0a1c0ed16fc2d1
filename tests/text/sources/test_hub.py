from __future__ import annotations

import errno
import gzip
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wrinklefree.downloads.local_files import digest_of_files, files_of_folder
from wrinklefree.errors import UserError
from wrinklefree.text.documents.document import Document
from wrinklefree.text.documents.settings import HubSource
from wrinklefree.text.sources import hub
from wrinklefree.text.sources.bad_records import BadRecords, BadRecordWarning
from wrinklefree.text.sources.hub import documents


def source(dataset: Path | str, **settings: Any) -> HubSource:
    fixed = {"kind": "hub", "domain": "d", "licence": "l", "dataset": str(dataset)}
    if Path(dataset).is_dir():
        fixed["sha256"] = digest_of_files(files_of_folder(Path(dataset)))
    return HubSource(**{**fixed, "revision": "main", **settings})


def read(dataset: Path | str, bad: BadRecords | None = None, **settings: Any) -> list[Document]:
    found = documents(source(dataset, **settings), cache=Path(), bad=bad or BadRecords())
    return list(found)


def write_lines(path: Path, *texts: str | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text, "body": f"body {n}"}) for n, text in enumerate(texts)]
    path.write_text("".join(line + "\n" for line in lines))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two subsets: one in two files of parquet, one with a second split."""
    pytest.importorskip("datasets")
    folder = tmp_path / "repository"
    contents = {
        "web/train-0.parquet": [f"web {n}" for n in range(6)],
        "web/train-1.parquet": [f"web {n}" for n in range(6, 10)],
        "books/train.parquet": ["one", "two"],
        "books/validation.parquet": ["three"],
    }
    for name, texts in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({"text": texts, "body": [f"body {n}" for n in range(len(texts))]})
        pq.write_table(table, folder / name, row_group_size=2)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: web\n  data_files: web/*.parquet\n"
        "- config_name: books\n  data_files:\n"
        "  - {split: train, path: books/train.parquet}\n"
        "  - {split: validation, path: books/validation.parquet}\n---\n"
    )
    return folder


def test_missing_library_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'wrinklefree\[hub\]'"):
        read("some/dataset")


def test_subset_split_and_column_are_those_of_the_settings(repository: Path) -> None:
    web = [(str(n), f"web {n}") for n in range(10)]
    assert read(repository, subset="web") == web
    assert read(repository, subset="books") == [("0", "one"), ("1", "two")]
    assert read(repository, subset="books", split="validation") == [("0", "three")]
    assert read(repository, subset="books", text_field="body")[1] == ("1", "body 1")


def test_a_folder_of_a_data_set_is_read_alone(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    for name in ("first", "second"):
        write_lines(tmp_path / name / "part.jsonl", name)
    assert [d.text for d in read(tmp_path)] == ["first", "second"]
    assert [d.text for d in read(tmp_path, folder="second")] == ["second"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"subset": "poems"}, r"subset poems.*'poems' not found.*'web', 'books'"),
        ({"subset": "web", "split": "test"}, r"split test.*Bad split: test.*'train'"),
        ({}, "Config name is missing"),
    ],
)
def test_missing_subset_or_split_names_those_there_are(
    repository: Path, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match="(?s)cannot open data set.*" + message):
        read(repository, **settings)


def test_missing_column_lists_those_there_are_whatever_is_skipped(repository: Path) -> None:
    with pytest.raises(UserError, match=r"no column 'content' \(columns: \['body', 'text'\]\)"):
        read(repository, BadRecords("skip"), subset="books", text_field="content")


def test_row_without_text_is_named_or_skipped(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    write_lines(tmp_path / "train.jsonl", "one", None, "three")
    with pytest.raises(UserError, match=rf"row 1 of {tmp_path}: NoneType instead of a string"):
        read(tmp_path)
    bad = BadRecords("skip")
    with pytest.warns(BadRecordWarning):
        assert read(tmp_path, bad) == [("0", "one"), ("2", "three")]
    assert bad.counts == {"no text": 1}


def test_truncated_parquet_is_named_with_its_row(repository: Path) -> None:
    file = repository / "web" / "train-1.parquet"
    file.write_bytes(file.read_bytes()[:-30])
    found = documents(source(repository, subset="web"), cache=Path(), bad=BadRecords("skip"))
    with pytest.raises(UserError, match=r"damaged, cut short .* at row 6"):
        assert [next(found).text for _ in range(7)]


def test_whatever_datasets_raises_for_a_broken_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    write_lines(tmp_path / "a.jsonl", "one")
    write_lines(tmp_path / "b.jsonl", *(str(n**9) for n in range(2000)))
    cut = gzip.compress((tmp_path / "b.jsonl").read_bytes())[:-20]
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "b.jsonl.gz").write_bytes(cut)
    with pytest.raises(UserError, match=r"cut short .* at row 1 or after it \(EOFError"):
        read(tmp_path, BadRecords("skip"))
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.jsonl.gz").unlink()
    with pytest.raises(UserError, match=r"cannot open data set .* whole and not empty"):
        read(tmp_path)
    write_lines(tmp_path / "a.jsonl", "one")
    (tmp_path / "README.md").write_text("---\nconfigs: [\n---\n")
    with pytest.raises(UserError, match=r"cannot open data set .* ParserError"):
        read(tmp_path)


def test_a_full_disk_is_not_taken_for_the_network(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    stream = Failing([3], full, monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        read(repository, subset="web")
    assert not stream.waits


class Failing:
    """A stream of which the n-th opening breaks after so many rows as the n-th of ``breaks``."""

    def __init__(self, breaks: list[int], error: Exception, monkeypatch: pytest.MonkeyPatch):
        self.breaks, self.error, self.starts = breaks, error, []
        self.waits: list[float] = []
        self.open = hub._opened
        monkeypatch.setattr(hub, "_opened", lambda source: self.stream(source))
        monkeypatch.setattr(hub.time, "sleep", self.waits.append)

    def stream(self, source: HubSource) -> Any:
        outer, rows = self, self.open(source)

        class Stream:
            def skip(self, count: int) -> Iterator[Any]:
                outer.starts.append(count)
                left = outer.breaks.pop(0) if outer.breaks else None
                for number, row in enumerate(rows.skip(count)):
                    if number == left:
                        raise outer.error
                    yield row

        return Stream()


def network_errors() -> list[Exception]:
    aiohttp = pytest.importorskip("aiohttp")
    errors = pytest.importorskip("huggingface_hub.errors")
    return [ConnectionResetError("reset"), aiohttp.ClientPayloadError("cut"), errors.HTTPError("x")]


@pytest.mark.parametrize("number", range(3))
def test_broken_connection_goes_on_at_its_row(
    repository: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    failing = Failing([3, 0, 0, 4, 0, 0], network_errors()[number], monkeypatch)
    assert [d.text for d in read(repository, subset="web")] == [f"web {n}" for n in range(10)]
    assert failing.starts == [0, 3, 3, 3, 7, 7, 7]
    assert failing.waits == [2, 4, 8, 2, 4, 8]


def test_connection_that_stays_broken_names_the_row(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing([3, 0, 0, 0, 0], ConnectionResetError("reset by peer"), monkeypatch)
    with pytest.raises(UserError, match=r"beyond row 3, tried 4 times: reset by peer"):
        read(repository, subset="web")
    assert failing.starts == [0, 3, 3, 3]


HUB_WITHOUT = """
import sys
from pathlib import Path
from wrinklefree.text.documents.settings import HubSource
from wrinklefree.text.sources.bad_records import BadRecords
from wrinklefree.text.sources.hub import documents
from wrinklefree.errors import UserError
for dataset in ("owner/gone", "owner/there"):
    source = HubSource(
        kind="hub", domain="d", licence="l", dataset=dataset, revision="a" * 40
    )
    try:
        list(documents(source, cache=Path(), bad=BadRecords()))
    except UserError as error:
        print(" ".join(str(error).split()))
"""


def test_a_local_folder_is_pinned_by_the_hash_of_its_files(repository: Path) -> None:
    pinned = source(repository, subset="web").sha256
    with pytest.raises(UserError, match=f"whose files may change .* sha256: {pinned}"):
        read(repository, subset="web", sha256=None)
    (repository / "web" / "train-1.parquet").unlink()
    with pytest.raises(UserError, match=f"expected {pinned}: a file was edited"):
        read(repository, subset="web", sha256=pinned)
    with pytest.raises(UserError, match="sha256 is for a local folder, which this is not"):
        read("owner/name", sha256=pinned)


def test_vanished_repository_and_revision_are_named(tmp_path: Path) -> None:
    pytest.importorskip("datasets")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            gone = "owner/gone" in self.path
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound" if gone else "RevisionNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    environment = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    try:
        result = subprocess.run(
            [sys.executable, "-c", HUB_WITHOUT],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
    finally:
        server.shutdown()
        server.server_close()
    gone, there = result.stdout.splitlines()
    assert gone.startswith("cannot open data set owner/gone (subset None, folder None, split train")
    assert "doesn't exist on the Hub" in gone
    assert f"Revision '{'a' * 40}' doesn't exist for dataset 'owner/there'" in there


def test_moving_revision_is_warned_of_but_for_local_folders(
    monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    monkeypatch.setattr(hub, "_rows", lambda source: iter([]))
    with pytest.warns(hub.MovingRevisionWarning, match="revision main of owner/name is no commit"):
        read("owner/name")
    read("owner/name", revision="a" * 40)
    read(repository)
