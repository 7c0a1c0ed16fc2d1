"""Tracking against a real SQLite database."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wrinklefree.tracking.pipeline import VARIABLE
from wrinklefree.tracking.runs import StageRun, tracking_uri

pytestmark = pytest.mark.filterwarnings("ignore")  # mlflow and sqlalchemy warn about themselves

STAGE = """
import sys
from wrinklefree.tracking.runs import StageRun
run = StageRun(sys.argv[1])
run.log_parameters({"stage2": {"steps": 3}})
for step in range(3):
    run.log_metrics(step, {"train/loss": 1.0 / (step + 1)})
run.finish(True)
sys.exit(not run.active)
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv(VARIABLE, "test-pipeline")
    return tmp_path


def recorded():
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri())
    experiment = client.get_experiment_by_name("wrinklefree")
    assert experiment
    return client, client.search_runs([experiment.experiment_id])


def test_four_stages_that_start_at_once_on_a_new_database_share_one_parent(project: Path):
    processes = [
        subprocess.Popen([sys.executable, "-c", STAGE, f"fetch.{name}"], cwd=project)
        for name in "abcd"
    ]
    assert [process.wait() for process in processes] == [0, 0, 0, 0]
    client, runs = recorded()
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1 and len(runs) == 5
    for run in runs:
        if run is not parents[0]:
            assert run.data.params == {"stage2.steps": "3"}
            history = client.get_metric_history(run.info.run_id, "train/loss")
            assert [m.value for m in history] == [1.0, 1 / 2, 1 / 3]
            assert run.info.status == "FINISHED"


def test_a_failed_stage_marks_its_run_and_the_pipelines(project: Path):
    run = StageRun("stage2")
    run.finish(False)
    _, runs = recorded()
    assert [run.info.status for run in runs] == ["FAILED", "FAILED"]


def test_a_database_that_breaks_is_said_once_and_costs_nothing_else(
    project: Path, capsys: pytest.CaptureFixture[str]
):
    run = StageRun("stage2")
    assert run.active
    for file in project.glob("mlflow.db*"):
        file.unlink()
        file.mkdir()
    for step in range(3):
        run.log_metrics(step, {"train/loss": 1.0})
        run.flush()
    run.finish(True)
    assert not run.active
    said = capsys.readouterr().err
    assert said.count("failed and is off for the rest of this stage") == 1


def test_an_unreachable_server_does_not_stop_a_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    run = StageRun("stage2")
    run.log_parameters({"seed": 1})
    run.log_metrics(1, {"train/loss": 1.0})
    run.finish(True)
    assert "tracking at http://127.0.0.1:9 failed" in capsys.readouterr().err
