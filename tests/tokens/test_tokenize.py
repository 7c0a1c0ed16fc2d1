from __future__ import annotations

import filecmp
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from wrinklefree.errors import UserError
from wrinklefree.text.documents.parquet import DOCUMENTS_FILE
from wrinklefree.text.generators.mathematics import document
from wrinklefree.tokens import encode as encode_module
from wrinklefree.tokens import tokenize as tokenize_module
from wrinklefree.tokens.encode import plan_shards, read_rows
from wrinklefree.tokens.encode_pool import encode_in_processes
from wrinklefree.tokens.settings import TokenizeSettings
from wrinklefree.tokens.shards import read_tokens
from wrinklefree.tokens.tokenize import tokenize_source
from wrinklefree.tokens.tokenizer import end_of_text_id, load_tokenizer

SCRIPT = Path(__file__).parents[2] / "workflow" / "scripts" / "tokenize.py"
TOKENIZE = """
import resource, sys
from pathlib import Path
from wrinklefree.tokens.settings import TokenizeSettings
from wrinklefree.tokens import encode
from wrinklefree.tokens.tokenize import tokenize_source
from wrinklefree.tracking.files import is_disk_full
if __name__ == "__main__":
    *folders, processes, limit = sys.argv[1:]
    raw, tokenizer, output, work = map(Path, folders)
    encode.MEGABYTE = 1000
    if int(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    settings = TokenizeSettings(shard_megabytes=20, processes=int(processes))
    try:
        tokenize_source(settings, raw, tokenizer, output, work=work)
    except OSError as error:
        print(is_disk_full(error))
"""


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """``shard_megabytes`` counts in kB."""
    monkeypatch.setattr(encode_module, "MEGABYTE", 1000)


@pytest.fixture(scope="module")
def source(raw) -> Path:
    """A source of 12 shards of 5 kB, of documents of very different lengths."""
    train = ["\n".join(document(7, m) for m in range(n, n + n % 9)) + "é🙂" for n in range(90)]
    held_out = [document(8, n) for n in range(30)]
    return raw("maths", {"train": train, "held_out": held_out}, row_group_size=5)


@pytest.fixture
def tokenize(
    tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Runs the stage; (artifact, facts)."""

    def run(
        raw: Path,
        *,
        megabytes: int = 5,
        processes: int = 1,
        max_tokens: int | None = None,
        work: Path | None = None,
        tokenizer: Path = tokenizer_folder,
    ) -> tuple[Path, dict[str, Any]]:
        folder = tmp_path_factory.mktemp("tokens")
        settings = TokenizeSettings(shard_megabytes=megabytes, processes=processes)
        work = work or tmp_path_factory.mktemp("work") / "key"
        facts = tokenize_source(settings, raw, tokenizer, folder, work=work, max_tokens=max_tokens)
        return folder, facts

    return run


def documents(folder: Path, split: str) -> list[list[int]]:
    """Token ids of each document of a token folder."""
    return [
        ids.tolist()
        for shard in read_tokens(folder).splits[split].shards
        for ids in np.split(shard.tokens, shard.ends[:-1].astype(np.int64))
    ]


def texts(raw: Path, split: str) -> list[str]:
    rows = pq.read_table(raw / DOCUMENTS_FILE).to_pylist()
    return [row["text"] for row in rows if row["split"] == split]


def one_by_one(raw: Path, tokenizer: Path, split: str) -> list[list[int]]:
    """The slow way: each text alone, the end of text behind it."""
    encoder, end = load_tokenizer(tokenizer), end_of_text_id(tokenizer)
    return [[*encoder.encode(t, add_special_tokens=False).ids, end] for t in texts(raw, split)]


def same_files(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    return filecmp.cmpfiles(one, other, names, shallow=False) == (names, [], [])


@pytest.mark.parametrize("batch", [700, 1 << 18])
def test_every_document_comes_back_from_its_tokens(
    source: Path, tokenize, tokenizer_folder: Path, small_shards: None,
    monkeypatch: pytest.MonkeyPatch, batch: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(encode_module, "BATCH_CHARACTERS", batch)
    monkeypatch.setattr(encode_module, "ROWS_AT_A_TIME", 3)
    folder, facts = tokenize(source)
    decoder = load_tokenizer(tokenizer_folder)
    for split in ("train", "held_out"):
        found, expected = documents(folder, split), texts(source, split)
        assert found == one_by_one(source, tokenizer_folder, split)
        decoded = [decoder.decode(ids[:-1], skip_special_tokens=False) for ids in found]
        assert decoded == expected
        assert facts["documents"][split] == len(expected)
        assert facts["tokens"][split] == sum(map(len, found))
        size = sum(len(text.encode()) for text in expected)
        tokens = facts["tokens"][split] - len(expected)
        assert facts["bytes_per_token"][split] == pytest.approx(size / tokens)
    assert read_tokens(folder).domain == "maths"


def test_documents_begin_with_what_the_tokenizer_puts_before_a_text(
    source: Path, tokenize, tokenizer_folder: Path, beginning_folder: Path, small_shards: None
) -> None:
    (plain, facts), (folder, found) = tokenize(source), tokenize(source, tokenizer=beginning_folder)
    for split in ("train", "held_out"):
        assert documents(folder, split) == [[1, *ids] for ids in documents(plain, split)]
        assert found["tokens"][split] == facts["tokens"][split] + facts["documents"][split]
    assert found["bytes_per_token"] == facts["bytes_per_token"]


def test_special_tokens_written_in_text_stay_text(raw, tokenize, tokenizer_folder: Path) -> None:
    text = "before<|endoftext|>after |<MASK>|<|padding|>"
    folder, _ = tokenize(raw("d", {"train": [text]}))
    (ids,) = documents(folder, "train")
    assert min(ids[:-1]) > 2
    decoder = load_tokenizer(tokenizer_folder)
    assert decoder.decode(ids[:-1], skip_special_tokens=False) == text


def test_number_of_processes_changes_no_byte(source: Path, tokenize, small_shards: None) -> None:
    alone, facts = tokenize(source)
    together, same_facts = tokenize(source, processes=3)
    assert same_files(alone, together)
    assert facts == same_facts
    assert facts["shards"]["train"] > 6


@pytest.mark.parametrize(
    ("processes", "cores", "started"),
    [(1, 5, None), (3, 5, 3), (90, 5, "every shard"), ("all", 5, 5), ("all", 1, None)],
)
def test_processes_is_how_many_are_started(
    source: Path, tokenizer_folder: Path, small_shards: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, processes: Any, cores: int, started: int | str | None,
) -> None:  # fmt: skip
    class Started(Exception):
        pass

    def start(*_: Path, processes: int) -> None:
        raise Started(processes)

    monkeypatch.setattr(tokenize_module, "encode_in_processes", start)
    monkeypatch.setattr(tokenize_module, "available_cpus", lambda: cores)
    settings = TokenizeSettings(shard_megabytes=5, processes=processes)
    arguments = settings, source, tokenizer_folder, tmp_path
    if started is None:
        tokenize_source(*arguments, work=tmp_path / "work")
    else:
        number = len(plan_shards(source, 5)) if started == "every shard" else started
        with pytest.raises(Started, match=f"^{number}$"):
            tokenize_source(*arguments, work=tmp_path / "work")


def test_shards_are_runs_of_row_groups_of_about_the_set_size(
    source: Path, small_shards: None, tokenize
) -> None:
    assert len(plan_shards(source, 1000)) == 1
    assert len(plan_shards(source, 1)) == pq.ParquetFile(source / DOCUMENTS_FILE).num_row_groups
    plans = plan_shards(source, 5)
    groups = [group for plan in plans for group in plan.row_groups]
    assert groups == list(range(24))
    starts = [0, *accumulate(plan.documents for plan in plans)]
    assert starts[-1] == 120
    texts = pq.read_table(source / DOCUMENTS_FILE)["text"].to_pylist()
    for plan, first in zip(plans, starts, strict=False):
        read = [row.text for row in read_rows(source, plan)]
        assert read == texts[first : first + plan.documents], "a shard starts where one ends"
    folder, facts = tokenize(source, megabytes=1000)
    assert facts["shards"] == {"train": 1, "held_out": 1}
    assert documents(folder, "train") == documents(tokenize(source)[0], "train")


@pytest.mark.parametrize("megabytes", [2, 5, 1000])
def test_max_tokens_ends_with_the_document_that_reaches_it(
    source: Path, tokenize, tokenizer_folder: Path, small_shards: None, megabytes: int
) -> None:
    every = one_by_one(source, tokenizer_folder, "train")
    ends = list(accumulate(map(len, every)))
    for max_tokens in (1, ends[0], ends[0] + 1, ends[40] - 1, ends[40], ends[40] + 1, ends[-1]):
        count = next(n for n, end in enumerate(ends, start=1) if end >= max_tokens)
        folder, facts = tokenize(source, megabytes=megabytes, max_tokens=max_tokens)
        assert documents(folder, "train") == every[:count]
        assert documents(folder, "held_out") == one_by_one(source, tokenizer_folder, "held_out")
        assert facts["tokens"]["train"] == ends[count - 1]
        assert facts["documents"]["train"] == count
        assert facts["dropped_max_tokens"] == len(every) - count
        assert facts["lacking_tokens"] == 0
        size = sum(len(text.encode()) for text in texts(source, "train")[:count])
        ratio = size / (ends[count - 1] - count)
        assert facts["bytes_per_token"]["train"] == pytest.approx(ratio)


def test_max_tokens_does_not_depend_on_the_number_of_processes(
    source: Path, tokenize, small_shards: None
) -> None:
    alone, facts = tokenize(source, megabytes=2, max_tokens=3000)
    together, same_facts = tokenize(source, megabytes=2, max_tokens=3000, processes=2)
    assert same_files(alone, together)
    assert facts == same_facts


def test_fewer_tokens_than_max_tokens_are_a_warning_and_a_fact(source: Path, tokenize) -> None:
    _, facts = tokenize(source)
    there = facts["tokens"]["train"]
    with pytest.warns(UserWarning, match=f"maths has {there:,} training tokens, fewer than"):
        _, facts = tokenize(source, max_tokens=there + 5)
    assert facts["lacking_tokens"] == 5
    assert facts["dropped_max_tokens"] == 0


def run_process(raw: Path, tokenizer: Path, output: Path, work: Path, processes: int, limit=0):
    output.mkdir(exist_ok=True)
    folders = [str(path) for path in (raw, tokenizer, output, work)]
    command = [sys.executable, "-c", TOKENIZE, *folders, str(processes), str(limit)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def children(process: int) -> Iterator[int]:
    tasks = Path(f"/proc/{process}/task/{process}/children")
    yield from map(int, tasks.read_text().split())


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def larger_source(raw) -> Path:
    """A source of 1 MB, many shards of 20 kB."""
    page = "\n".join(document(3, n) for n in range(10))
    return raw("maths", {"train": [f"{n} {page}" for n in range(200)]}, row_group_size=2)


def finished(work: Path) -> dict[str, int]:
    """When the records of finished shards were written, by their names."""
    return {p.parent.name: p.stat().st_mtime_ns for p in work.glob("[0-9]*/shard.json")}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_after_a_kill_only_the_missing_shards_are_encoded(
    larger_source: Path, tokenizer_folder: Path, tokenize, small_shards: None, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    process = run_process(larger_source, tokenizer_folder, tmp_path / "out", work, 2)
    until(lambda: len(finished(work)) >= 5)
    workers = list(children(process.pid))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    before = finished(work)
    plans = plan_shards(larger_source, 20)
    assert len(before) < len(plans)
    (work / f".{len(plans) - 1:05d}.partial-1").mkdir()  # as a kill at the worst time leaves it
    again, facts = tokenize(larger_source, megabytes=20, work=work)
    assert before.items() <= finished(work).items()
    uninterrupted, same_facts = tokenize(larger_source, megabytes=20)
    assert same_files(again, uninterrupted)
    assert facts == same_facts
    assert not list(work.glob(".*"))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_in_the_middle_of_a_shard_is_recognised(
    raw, tokenizer_folder: Path, tmp_path: Path, processes: int
) -> None:
    small, large = document(3, 1), "\n".join(document(3, n) for n in range(900))
    source = raw("d", {"train": [small * 30, small * 30, large, small]}, row_group_size=2)
    work = tmp_path / "work"
    process = run_process(source, tokenizer_folder, tmp_path / "out", work, processes, 30_000)
    output, _ = process.communicate()
    assert output.split() == [b"True"]
    assert not list(work.glob(".*.partial-*"))
    assert set(finished(work)) <= {"00000"}


@pytest.mark.parametrize("name", ["train.00003.ds", "train.00003.ds.index", "shard.json"])
@pytest.mark.parametrize("edit", ["changed", "removed"])
def test_a_damaged_shard_is_encoded_again(
    source: Path, tokenize, small_shards: None, tmp_path: Path, name: str, edit: str
) -> None:
    whole, _ = tokenize(source, work=tmp_path)
    before = finished(tmp_path)
    path = tmp_path / "00003" / name
    content = path.read_bytes()
    path.unlink()
    if edit == "changed":
        path.write_bytes(content[:-2] + b"~~")
    with pytest.warns(UserWarning, match="00003 is damaged"):
        again, _ = tokenize(source, work=tmp_path)
    assert same_files(whole, again)
    after = finished(tmp_path)
    assert {shard for shard in after if after[shard] != before.get(shard)} == {"00003"}


def test_a_killed_process_is_an_error_that_says_what_to_do(
    larger_source: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    (plan,) = plan_shards(larger_source, 1000)
    with (
        pytest.raises(UserError, match=r"was killed, .* lower tokenize.processes"),
        encode_in_processes(tokenizer_folder, larger_source, tmp_path, processes=2) as submit,
    ):
        result = submit(plan, True)
        until(lambda: any(tmp_path.iterdir()))
        worker = int(next(tmp_path.iterdir()).name.rpartition("-")[2])
        os.kill(worker, signal.SIGKILL)
        result()


def test_an_interruption_does_not_wait_for_the_shard(
    larger_source: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    (plan,) = plan_shards(larger_source, 1000)
    with (
        pytest.raises(KeyboardInterrupt),
        encode_in_processes(tokenizer_folder, larger_source, tmp_path, processes=2) as submit,
    ):
        submit(plan, True)
        until(lambda: any(tmp_path.iterdir()))
        raise KeyboardInterrupt
    assert not finished(tmp_path)


def test_the_processes_import_neither_torch_nor_mlflow() -> None:
    # As `spawn` does: the stage's script is imported under this name, then what it calls.
    code = (
        "import runpy, sys\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__mp_main__')\n"
        "import wrinklefree.tokens.encode_pool\n"
        "print(sorted({'torch', 'mlflow', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-P", "-c", code], text=True) == "[]\n"
