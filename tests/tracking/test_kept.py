from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from wrinklefree.errors import UserError
from wrinklefree.tracking.artifact import MANIFEST, Origin, open_artifact, writing_artifact
from wrinklefree.tracking.kept import (
    KEPT,
    has_copy,
    is_forced_dvc,
    keep,
    kept_artifacts,
    restore,
    restore_alone,
)
from wrinklefree.tracking.locks import LOCKS, exclusive_lock
from wrinklefree.tracking.provenance import record_of

STAGE2 = Path("models/stage2")


def write(content: str, path: Path = STAGE2) -> None:
    with writing_artifact(path, Origin("stage2", {}, {})) as (folder, _):
        (folder / "deep").mkdir()
        (folder / "deep" / "a.txt").write_text(content)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def gone() -> None:
    shutil.rmtree(STAGE2)


def without_manifest() -> None:
    (STAGE2 / MANIFEST).unlink()


@pytest.mark.parametrize("lose", [gone, without_manifest])
def test_what_an_engine_deleted_comes_back_whole(lose):
    write("trained")
    record = Path("provenance/models/stage2.json")
    assert record == record_of(STAGE2)
    record.parent.mkdir(parents=True)
    record.write_text("how")
    assert keep(STAGE2) is None
    record.unlink()
    before = open_artifact(STAGE2).manifest
    lose()
    assert has_copy(STAGE2)
    assert restore(STAGE2) == "stage2"
    assert open_artifact(STAGE2).manifest == before
    assert not has_copy(STAGE2)
    assert record.read_text() == "how"
    assert [path.name for path in Path("models").iterdir()] == ["stage2"]


def test_the_newest_is_kept_and_takes_no_space():
    for content in ("first", "second"):
        write(content)
        keep(STAGE2)
    assert kept_artifacts() == [STAGE2]
    kept, stands = (folder / STAGE2 / "deep" / "a.txt" for folder in (KEPT, Path()))
    assert kept.samefile(stands) and kept.read_text() == "second"
    assert kept.stat().st_nlink == 2, "the first is still linked somewhere"


def test_a_rewritten_artifact_leaves_the_copy_as_it_was():
    write("first")
    keep(STAGE2)
    write("second")
    gone()
    restore(STAGE2)
    assert (STAGE2 / "deep" / "a.txt").read_text() == "first"


def test_nothing_that_stands_is_replaced():
    write("first")
    keep(STAGE2)
    with pytest.raises(UserError, match="nothing to restore; it stands there, whole"):
        restore(STAGE2)
    write("second")
    with pytest.raises(UserError, match="another artifact stands there"):
        restore(STAGE2)
    gone()
    STAGE2.mkdir()
    (STAGE2 / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="holds thesis.txt"):
        restore(STAGE2)
    assert (STAGE2 / "thesis.txt").read_text() == "years"


def test_a_damaged_copy_is_not_put_back():
    write("first")
    keep(STAGE2)
    gone()
    (KEPT / STAGE2 / "deep" / "a.txt").write_text("other")
    with pytest.raises(UserError, match="content differs from its manifest"):
        restore(STAGE2)
    assert not STAGE2.exists()


def test_where_there_is_no_copy_those_that_exist_are_named():
    write("first")
    keep(STAGE2)
    with pytest.raises(UserError, match=f"models/base: no copy .* kept of: {STAGE2}"):
        restore(Path("models/base"))
    with pytest.raises(UserError, match="no copy is kept of it"):
        restore(Path("../models/stage2"))


@pytest.mark.parametrize("label", ["stage2", "stage2.other"])
def test_nothing_is_put_back_while_its_stage_runs(label: str):
    folder = Path("models/other")
    write("first", folder)
    keep(folder)
    shutil.rmtree(folder)
    refused = pytest.raises(UserError, match=f"models/other: {label} is running in another process")
    with exclusive_lock(LOCKS / f"{label}.lock"), refused:
        restore_alone(folder)
    assert restore_alone(folder) == "stage2"


def test_outside_of_the_project_nothing_is_kept(tmp_path_factory: pytest.TempPathFactory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "one"
    write("first", elsewhere)
    assert keep(elsewhere) == f"{elsewhere} lies outside of this folder"
    assert not KEPT.exists()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/env/bin/python /env/bin/dvc repro --force stage2", True),
        ("python -m dvc repro -f", True),
        ("dvc exp run -sf export", True),
        ("dvc repro -fs stage2", True),
        ("dvc repro --force-downstream", True),
        ("dvc repro stage2 -S a.b=f", False),
        ("dvc repro fetch@forest", False),
        ("snakemake --force dvc", False),
    ],
)
def test_a_dvc_that_was_forced_is_told_from_one_that_was_not(command: str, expected: bool):
    assert is_forced_dvc(command.split()) == expected
