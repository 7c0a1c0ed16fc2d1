from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wrinklefree.tracking.pipeline import (
    Commit,
    pipeline_identity,
    pipeline_name,
    pipeline_note,
    preset_name,
    storable,
)
from wrinklefree.tracking.store import lock_file, project_folder, tracking_uri

PROJECT = Path(__file__).parents[2]
COMMIT = Commit("a483151" + "0" * 33, True)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "WRINKLEFREE_PIPELINE", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("snakemake --cores 2 stage2 --configfile params/tiny.yaml", "tiny"),
        ("snakemake stage2 --configfiles params/tiny.yaml /else/more.yml -n", "tiny+more"),
        ("snakemake --configfile=params/tiny.yaml --cores 2 all", "tiny"),
        ("snakemake stage2 --cores 2", "params.yaml"),
        ("dvc repro stage2", "params.yaml"),
    ],
)
def test_the_preset_is_what_the_command_line_names(project: Path, command: str, expected: str):
    assert preset_name(command.split()) == expected


def test_without_one_there_it_is_what_params_holds_already(project: Path):
    shutil.copytree(PROJECT / "params", "params")
    shutil.copy(PROJECT / "params.yaml", ".")
    command = ["dvc", "repro"]
    assert preset_name(command) == "params.yaml"
    laid = [sys.executable, "-m", "wrinklefree.cli", "preset", "tiny"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT / "src")}
    subprocess.run(laid, env=environment, check=True, capture_output=True)
    assert preset_name(command) == "tiny"
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("steps: 12\n", "steps: 13\n", 1))
    assert preset_name(command) == "params.yaml", "edited since"
    Path("params.yaml").write_text("no: [mapping")
    assert preset_name(command) == "params.yaml"


def test_a_pipelines_name_and_note_say_what_was_run(project: Path, monkeypatch: pytest.MonkeyPatch):
    name = pipeline_name(COMMIT)
    assert name.startswith("params.yaml · a483151 · 20")
    assert time.strptime(name.rpartition(" · ")[2], "%Y-%m-%d %H:%M")
    monkeypatch.setenv("DVC_EXP_NAME", "tubal-tors")
    assert pipeline_name(COMMIT).startswith("params.yaml · tubal-tors · a483151 · 20")
    assert f"commit {COMMIT.hash}, with uncommitted edits." in pipeline_note(COMMIT)
    assert "no git repository." in pipeline_note(Commit("", False))


def test_text_of_any_kind_becomes_storable():
    assert storable("a\udcff\0木") == "a\\udcff\\0木"
    assert len(storable("x" * 20_000)) == 2001


@pytest.mark.parametrize("copy", ["tmpib3ohd6j", "standalone/tmp82uiyghq", "tmpx/sub/project"])
def test_a_temporary_copy_of_dvc_is_tracked_with_its_project(
    project: Path, monkeypatch: pytest.MonkeyPatch, copy: str
):
    outside = pipeline_identity()
    folder = project / ".dvc" / "tmp" / "exps" / copy
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert project_folder() == project
    assert tracking_uri() == f"sqlite:///{project}/mlflow.db"
    assert lock_file() == project / "work" / "locks" / "mlflow.lock"
    assert pipeline_identity() != outside and copy in pipeline_identity()


STAGE = """
import sys
from pathlib import Path
from wrinklefree.tracking.runs import StageRun
run = StageRun("stage2", Path("work/stage2/key"))
run.log_parameters({"params": Path("params.yaml").read_text()})
run.finish("FINISHED")
Path("out").write_text("done")
"""


def dvc(*arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.end_to_end
def test_experiments_that_dvc_runs_in_copies_are_in_the_projects_database(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    identity = ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL")
    for name, value in {f"GIT_{name}": "a@b" for name in identity}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT / "src"))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    (project / "stage.py").write_text(STAGE)
    (project / "params.yaml").write_text("x: 1\n")
    (project / "dvc.yaml").write_text(
        f"stages:\n  stage2:\n    cmd: {sys.executable} stage.py\n    deps: [stage.py]\n"
        "    params: [x]\n    outs: [out]\n"
    )
    (project / ".gitignore").write_text("/out\n/work\n/mlflow.db*\n/mlartifacts\n")
    subprocess.run(["git", "init", "--quiet"], check=True)
    dvc("init", "--quiet")
    subprocess.run(["git", "add", "--all"], check=True)
    subprocess.run(["git", "commit", "--quiet", "--message", "x"], check=True)
    dvc("exp", "run", "--temp", "-S", "x=2", "--name", "at-once")
    for number, name in ((3, "first"), (4, "second")):
        dvc("exp", "run", "--queue", "-S", f"x={number}", "--name", name)
    dvc("queue", "start")
    deadline = time.monotonic() + 120
    while dvc("queue", "status").count("Success") < 2:
        assert time.monotonic() < deadline, dvc("queue", "status")
        time.sleep(1)
    with sqlite3.connect(project / "mlflow.db") as database:
        query = (
            "SELECT parent.name, params.value FROM runs"
            " JOIN tags ON tags.run_uuid = runs.run_uuid AND tags.key = 'mlflow.parentRunId'"
            " JOIN runs AS parent ON parent.run_uuid = tags.value"
            " JOIN params ON params.run_uuid = runs.run_uuid"
            " WHERE runs.status = 'FINISHED' AND parent.status = 'FINISHED'"
        )
        found = {name.split(" · ")[1]: value.strip() for name, value in database.execute(query)}
    database.close()
    assert found == {"at-once": "x: 2", "first": "x: 3", "second": "x: 4"}
