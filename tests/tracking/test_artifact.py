from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from wrinklefree.errors import UserError
from wrinklefree.tracking.artifact import (
    MANIFEST,
    MARKER,
    SCHEMA,
    Origin,
    open_artifact,
    read_manifest,
    writing_artifact,
)


def origin(**changes: Any) -> Origin:
    values: dict[str, Any] = {
        "stage": "tokenize",
        "inputs": {"raw": "0" * 64},
        "settings": {"steps": 3},
    }
    return Origin(**values | changes)


def write(path: Path, content: str = "text", **changes: Any) -> None:
    with writing_artifact(path, origin(**changes)) as (folder, facts):
        (folder / "deep").mkdir()
        (folder / "deep" / "a.txt").write_text(content)
        (folder / "b.bin").write_bytes(bytes(1000))
        facts["documents"] = 7


def test_what_was_written_opens_and_repeats_to_the_byte(tmp_path: Path):
    write(tmp_path / "one")
    write(tmp_path / "two")
    artifact = open_artifact(tmp_path / "one")
    assert sorted(artifact.manifest.files) == [MARKER, "b.bin", "deep/a.txt"]
    assert artifact.manifest.facts == {"documents": 7}
    assert (tmp_path / "one" / MANIFEST).read_bytes() == (tmp_path / "two" / MANIFEST).read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"steps": 4}},
        {"inputs": {"raw": "2" * 64}},
        {"content": "other"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_digest_changes_with_whatever_the_artifact_is_made_from(
    tmp_path: Path, changes: dict[str, Any]
):
    write(tmp_path / "one")
    write(tmp_path / "two", **changes)
    digests = {read_manifest(tmp_path / name).digest for name in ("one", "two")}
    assert len(digests) == 2


def edit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(bytes(data))


def truncate(path: Path) -> None:
    os.truncate(path, 999)


def add(path: Path) -> None:
    path.with_name("c.bin").write_text("new")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit, "b.bin: content differs from its manifest"),
        (truncate, "b.bin: 999 bytes, expected 1000"),
        (Path.unlink, "b.bin: listed in manifest.json but missing"),
        (add, "c.bin: not in manifest.json"),
    ],
)
def test_damage_is_found_and_the_file_named(tmp_path: Path, damage: Any, message: str):
    write(tmp_path / "one")
    damage(tmp_path / "one" / "b.bin")
    with pytest.raises(UserError, match=message):
        open_artifact(tmp_path / "one")


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path):
    (tmp_path / "one").mkdir()
    with pytest.raises(UserError, match="not a finished artifact"):
        open_artifact(tmp_path / "one")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"schema": 3, "files": 3}', "\x00", "[" * 100_000, '{"a": ' * 100_000],
    ids=lambda content: content[:20],
)
def test_a_broken_manifest_is_a_users_error(tmp_path: Path, content: str):
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(UserError, match=r"not a manifest of this version|edited after"):
        open_artifact(tmp_path)


def test_a_manifest_of_an_absurd_size_is_not_read(tmp_path: Path):
    with (tmp_path / MANIFEST).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="1099511627776 bytes, more than any stage writes"):
        open_artifact(tmp_path)


def test_a_manifest_of_another_version_says_so(tmp_path: Path):
    (tmp_path / MANIFEST).write_text('{"schema": 1, "files": {}}')
    with pytest.raises(UserError, match=f"schema 1, expected {SCHEMA}"):
        open_artifact(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("facts", {"documents": 8}),
        ("settings", {"steps": 300}),
        ("inputs", {}),
        ("stage", "fetch"),
        ("digest", None),
    ],
)
def test_a_manifest_that_was_edited_is_refused(tmp_path: Path, key: str, value: Any):
    write(tmp_path / "one")
    file = tmp_path / "one" / MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(UserError, match="edited after its stage wrote it"):
        open_artifact(tmp_path / "one")


def test_facts_that_are_keyed_by_numbers_open_again(tmp_path: Path):
    with writing_artifact(tmp_path / "one", origin()) as (_, facts):
        facts["epochs"] = {2: 1.5, 10: (1, 2)}
    assert read_manifest(tmp_path / "one").facts == {"epochs": {"2": 1.5, "10": [1, 2]}}


def user_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("years")


def user_file(path: Path) -> None:
    path.write_text("years")


def user_link(path: Path) -> None:
    path.with_name("elsewhere").mkdir()
    path.symlink_to("elsewhere")


def user_file_in_an_artifact(path: Path) -> None:
    write(path)
    (path / "deep" / "notes.txt").write_text("years")


def user_file_in_what_an_engine_left(path: Path) -> None:
    user_file_in_an_artifact(path)
    (path / MANIFEST).unlink()


def user_link_to_nothing(path: Path) -> None:
    path.mkdir()
    (path / "later").symlink_to("nowhere")


def foreign_manifest(path: Path) -> None:
    path.mkdir()
    (path / MANIFEST).write_text('{"files": {"thesis.txt": {}}, "schema": 3}')
    (path / "thesis.txt").write_text("years")


def everything_below(folder: Path) -> dict[str, Any]:
    return {
        entry.relative_to(folder).as_posix(): entry.read_bytes() if entry.is_file() else None
        for entry in folder.rglob("*")
    }


@pytest.mark.parametrize(
    "make",
    [
        user_folder,
        user_file,
        user_link,
        user_file_in_an_artifact,
        user_file_in_what_an_engine_left,
        user_link_to_nothing,
        foreign_manifest,
    ],
)
def test_what_no_stage_wrote_is_never_replaced(tmp_path: Path, make: Any):
    make(tmp_path / "one")
    before = everything_below(tmp_path)
    with pytest.raises(UserError, match="a stage replaces only what a stage wrote"):
        write(tmp_path / "one")
    assert everything_below(tmp_path) == before


def test_what_a_user_puts_there_meanwhile_is_not_replaced(tmp_path: Path):
    with (
        pytest.raises(UserError, match="holds thesis.txt"),
        writing_artifact(tmp_path / "one", origin()),
    ):
        user_folder(tmp_path / "one")
    assert (tmp_path / "one" / "thesis.txt").read_text() == "years"


def empty_folders(path: Path) -> None:
    (path / "plots").mkdir(parents=True)  # as Snakemake makes them before a job


def left_by_an_engine(path: Path) -> None:
    write(path)
    (path / MANIFEST).unlink()
    (path / "b.bin").unlink()


@pytest.mark.parametrize("make", [empty_folders, left_by_an_engine, write])
def test_an_empty_folder_and_what_a_stage_wrote_are_replaced(tmp_path: Path, make: Any):
    make(tmp_path / "one")
    write(tmp_path / "one", "later")
    open_artifact(tmp_path / "one")
    assert (tmp_path / "one" / "deep" / "a.txt").read_text() == "later"


def test_a_failed_writer_leaves_the_old_artifact_and_nothing_else(tmp_path: Path):
    write(tmp_path / "one")
    before = read_manifest(tmp_path / "one")
    with (
        pytest.raises(RuntimeError, match="broken"),
        writing_artifact(tmp_path / "one", origin(stage="other")) as (folder, _),
    ):
        (folder / "half.txt").write_text("half")
        raise RuntimeError("broken")
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert open_artifact(tmp_path / "one").manifest == before


def test_not_a_number_is_refused_as_a_fact(tmp_path: Path):
    with (
        pytest.raises(ValueError, match="Out of range float"),
        writing_artifact(tmp_path / "one", origin()) as (_, facts),
    ):
        facts["loss"] = float("nan")
    assert not (tmp_path / "one").exists()


KILLED = """
import sys, time
from pathlib import Path
from wrinklefree.tracking.artifact import Origin, writing_artifact
with writing_artifact(Path(sys.argv[1]), Origin("fetch", {}, {})) as (folder, _):
    (folder / "new.txt").write_text("new")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_writer_killed_half_way_leaves_the_old_artifact_and_the_next_one_cleans_up(
    tmp_path: Path,
):
    path = tmp_path / "one"
    write(path)
    before = read_manifest(path)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert open_artifact(path).manifest == before
    write(path, "later")
    assert [entry.name for entry in tmp_path.iterdir()] == ["one"]
    assert (path / "deep" / "a.txt").read_text() == "later"


def test_a_writer_killed_while_it_replaces_leaves_the_old_artifact_to_the_next_one(tmp_path: Path):
    path = tmp_path / "one"
    write(path)
    before = read_manifest(path)
    path.rename(tmp_path / ".one.previous")  # the new one was not put there yet
    with pytest.raises(RuntimeError, match="broken"), writing_artifact(path, origin(stage="other")):
        raise RuntimeError("broken")
    assert [entry.name for entry in tmp_path.iterdir()] == ["one"]
    assert open_artifact(path).manifest == before


def test_the_manifest_is_readable_json_with_every_part_of_the_contract(tmp_path: Path):
    write(tmp_path / "one")
    content = json.loads((tmp_path / "one" / MANIFEST).read_text())
    assert set(content) == {
        "schema", "digest", "stage", "files", "inputs", "settings", "facts",
    }  # fmt: skip
    assert content["files"]["b.bin"]["size"] == 1000
    assert str(time.localtime().tm_year) not in json.dumps(content["facts"])
