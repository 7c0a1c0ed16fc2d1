"""Tracking against a real SQLite database."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wrinklefree.errors import UserError
from wrinklefree.tracking import runs as tracked
from wrinklefree.tracking import store
from wrinklefree.tracking.artifact import Artifact, Origin, open_artifact, writing_artifact
from wrinklefree.tracking.attach import attach
from wrinklefree.tracking.pipeline import VARIABLE
from wrinklefree.tracking.runs import StageRun
from wrinklefree.tracking.store import tracking_uri

pytestmark = pytest.mark.filterwarnings("ignore")  # mlflow and sqlalchemy warn about themselves
PROJECT = Path(__file__).parents[2]
WORK = Path("work/stage2/0123456789abcdef")
HALF, ALL = 60, 100

STAGE = """
import sys
from pathlib import Path
from wrinklefree.tracking.runs import StageRun
run = StageRun(sys.argv[1], Path("work") / sys.argv[1])
run.log_parameters({"stage2": {"steps": 3}})
for step in range(3):
    run.log_metrics(step, {"train/loss": 1.0 / (step + 1)})
run.finish("FINISHED")
sys.exit(not run.active)
"""

KILLED = f"""
import os, signal, sys
from pathlib import Path
from wrinklefree.tracking.runs import StageRun
run = StageRun("stage2", Path(sys.argv[1]))
run.log_parameters({{"seed": 1}})
for step in range(1, {HALF} + 1):
    run.log_metrics(step, {{f"train/{{name}}": step / 8 for name in "abc"}})
    if step == int(sys.argv[2]):
        run.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""

FRAME = f"""
import os, sys, time
from signal import SIGINT, default_int_handler, signal as handle
from wrinklefree.tracking.stage import stage_main

handle(SIGINT, default_int_handler)  # which a process in the background of a script ignores
signal = int(sys.argv[1])
settings = '{{"export": {{}}, "base": {{"source": {{"kind": "scratch"}}}}}}'
script = {str(PROJECT / "workflow" / "scripts" / "export.py")!r}
sys.argv = [script, "--settings", settings, "--output", "out"]

def export(stage):
    for step in range(1, {HALF} + 1):
        stage.run.log_metrics(step, {{"train/a": step / 8}})
    if signal:
        os.kill(os.getpid(), signal)
        time.sleep(60)
    return {{"steps": {HALF}}}

stage_main("export", export)
"""


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that has MLflow's tables, which take seconds to make, and no runs."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("tables") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(tables, tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv(VARIABLE, "test-pipeline")
    return tmp_path


def recorded():
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri())
    experiment = client.get_experiment_by_name("wrinklefree")
    assert experiment
    return client, client.search_runs([experiment.experiment_id])


def parents_and_stages():
    _, runs = recorded()
    stages = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    return [run for run in runs if run not in stages], stages


def killed_stage(flushed: int, work: Path = WORK) -> int:
    """Runs a stage that sends the steps up to ``flushed``, and is killed; returns its pid."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(work), str(flushed)])
    assert process.wait() == -signal.SIGKILL
    return process.pid


def log_steps(run: StageRun, first: int, last: int) -> None:
    for step in range(first, last + 1):
        run.log_metrics(step, {f"train/{name}": step / 8 for name in "abc"})


def steps_of(run_id: str, name: str = "train/a") -> list[int]:
    history = recorded()[0].get_metric_history(run_id, name)
    assert [metric.value for metric in history] == [metric.step / 8 for metric in history]
    return [metric.step for metric in history]


def write(path: Path, stage: str, facts: dict[str, object]) -> Artifact:
    with writing_artifact(path, Origin(stage, {}, {})) as (folder, made):
        (folder / "a.txt").write_text("text")
        made.update(facts)
    return open_artifact(path)


def test_four_stages_that_start_at_once_on_a_new_database_share_one_parent(project: Path):
    (project / "mlflow.db").unlink()
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


@pytest.mark.parametrize("outcome", ["FAILED", "KILLED", "FINISHED"])
def test_how_a_stage_ended_marks_its_run_and_the_pipelines(outcome: tracked.Outcome):
    StageRun("stage2", WORK).finish(outcome)
    StageRun("distill", Path("work/distill")).finish("FINISHED")
    (parent,), stages = parents_and_stages()
    assert {run.info.run_name: run.info.status for run in stages} == {
        "stage2": outcome,
        "distill": "FINISHED",
    }
    assert parent.info.status == outcome


@pytest.mark.parametrize("flushed", [0, 30, HALF])
def test_a_killed_stage_goes_on_with_its_run_and_each_step_is_there_once(flushed: int):
    killed_stage(flushed)
    _, (before,) = parents_and_stages()
    run = StageRun("stage2", WORK)
    run.log_parameters({"seed": 1})
    checkpoint = 40  # steps above it were logged before the kill and are run again
    log_steps(run, 1, checkpoint)
    log_steps(run, checkpoint + 1, ALL)
    run.finish("FINISHED")
    (parent,), (after,) = parents_and_stages()
    assert after.info.run_id == before.info.run_id
    assert (before.info.status, after.info.status) == ("RUNNING", "FINISHED")
    assert after.data.tags["wrinklefree.resumed"] == "1"
    assert after.data.tags["wrinklefree.pid"] == str(os.getpid())
    for name in "abc":
        assert steps_of(after.info.run_id, f"train/{name}") == list(range(1, ALL + 1))
    assert parent.info.status == "FINISHED", "what was killed has ended well"


@pytest.mark.parametrize(
    ("number", "status", "sent"),
    [
        (signal.SIGKILL, "RUNNING", []),
        (signal.SIGTERM, "KILLED", list(range(1, HALF + 1))),
        (signal.SIGINT, "KILLED", list(range(1, HALF + 1))),
    ],
)
def test_a_stage_that_a_signal_stops_is_closed_and_its_run_goes_on(
    number: signal.Signals, status: str, sent: list[int]
):
    assert subprocess.run([sys.executable, "-c", FRAME, str(int(number))], check=False).returncode
    _, (stopped,) = parents_and_stages()
    assert stopped.info.status == status and steps_of(stopped.info.run_id) == sent
    subprocess.run([sys.executable, "-c", FRAME, "0"], check=True)
    (parent,), (finished,) = parents_and_stages()
    assert finished.info.run_id == stopped.info.run_id
    assert finished.info.status == parent.info.status == "FINISHED"
    assert finished.data.metrics["written/steps"] == HALF
    assert steps_of(finished.info.run_id) == list(range(1, HALF + 1))
    assert not Path("work/export").exists()


def test_a_resumed_run_moves_to_the_pipeline_that_resumed_it(monkeypatch: pytest.MonkeyPatch):
    killed_stage(HALF)
    (first,), _ = parents_and_stages()
    monkeypatch.setenv(VARIABLE, "another")
    StageRun("stage2", WORK).finish("FINISHED")
    parents, (stage,) = parents_and_stages()
    second = next(run for run in parents if run.info.run_id != first.info.run_id)
    assert stage.data.tags["mlflow.parentRunId"] == second.info.run_id
    assert stage.data.tags["wrinklefree.parent.before"] == first.info.run_id
    assert {run.info.run_id: run.info.status for run in parents} == {
        first.info.run_id: "KILLED",
        second.info.run_id: "FINISHED",
    }


def test_a_resumed_stage_whose_database_was_lost_logs_its_whole_history(project: Path):
    killed_stage(HALF)
    for file in project.glob("mlflow.db*"):
        file.unlink()
    run = StageRun("stage2", WORK)
    log_steps(run, 1, ALL)
    run.finish("FINISHED")
    _, (stage,) = parents_and_stages()
    assert steps_of(stage.info.run_id) == list(range(1, ALL + 1))


def test_runs_whose_process_is_gone_are_closed_by_the_next_stage_and_others_are_not():
    pid = killed_stage(HALF)
    alive = StageRun("dlm", Path("work/dlm"))
    elsewhere = StageRun("base", Path("work/base"))
    client, _ = recorded()
    client.set_tag(elsewhere._run_id, "wrinklefree.host", "other-host")
    client.set_tag(elsewhere._run_id, "wrinklefree.pid", str(pid))
    reused = StageRun("subln", Path("work/subln"))
    client.set_tag(reused._run_id, "wrinklefree.pid.created", "12345.0")
    StageRun("export", Path("work/export")).finish("FINISHED")
    _, stages = parents_and_stages()
    status = {run.info.run_name: run.info.status for run in stages}
    assert status == {
        "stage2": "KILLED",
        "subln": "KILLED",
        "dlm": "RUNNING",
        "base": "RUNNING",
        "export": "FINISHED",
    }
    killed = next(run for run in stages if run.info.run_name == "stage2")
    assert killed.data.tags["wrinklefree.orphan"].startswith(f"process {pid} was gone at ")
    assert alive.active


def test_parts_of_a_stage_are_runs_below_it_which_do_not_end_it():
    stage = StageRun("search", WORK)
    client, _ = recorded()
    for number, outcome in enumerate(("FINISHED", "KILLED")):
        part = StageRun(f"search.{number}", WORK / str(number), stage.id)
        log_steps(part, 1, 2)
        part.finish(outcome)
        assert client.get_run(stage.id).info.status == "RUNNING"
        assert client.get_run(part.id).data.tags["mlflow.parentRunId"] == stage.id
    gone = StageRun("search.2", WORK / "2", stage.id)
    client.set_tag(gone.id, "wrinklefree.pid.created", "12345.0")
    StageRun("export", Path("work/export")).finish("FINISHED")
    assert client.get_run(gone.id).info.status == "KILLED"
    assert client.get_run(stage.id).info.status == "RUNNING"
    stage.finish("FINISHED")
    (parent,), _ = parents_and_stages()
    assert parent.info.status == client.get_run(stage.id).info.status == "FINISHED"


def test_parts_of_a_stage_that_is_not_tracked_are_not_either():
    part = StageRun("search.0", WORK, "")
    log_steps(part, 1, 2)
    part.finish("FINISHED")
    assert part.id == "" and not list(WORK.glob("*"))


def test_words_about_a_run_are_tags():
    run = StageRun("stage2", WORK)
    run.log_tags({"wrinklefree.continued_from": "step 80"})
    run.finish("FINISHED")
    _, (stage,) = parents_and_stages()
    assert stage.data.tags["wrinklefree.continued_from"] == "step 80"


def test_the_comparison_of_models_is_metrics_of_the_pipelines_run():
    facts = {"loss": {"base": 2.5, "stage2": 3.0}, "recovered": {"stage2": 0.75, "dlm": None}}
    run = StageRun("evaluate", Path("work/evaluate"))
    run.log_output(write(Path("results"), "evaluate", facts))
    run.finish("FINISHED")
    (parent,), (stage,) = parents_and_stages()
    assert parent.data.metrics == {"loss/base": 2.5, "loss/stage2": 3.0, "recovered/stage2": 0.75}
    assert stage.data.metrics["written/loss.base"] == 2.5


def test_the_pipelines_run_has_a_name_and_a_description_that_grows():
    StageRun("stage2", WORK).finish("FAILED")
    StageRun("subln", Path("work/subln")).finish("FINISHED")
    (parent,), _ = parents_and_stages()
    assert str(parent.info.run_name).startswith("params.yaml · ")
    note = parent.data.tags["mlflow.note.content"]
    assert "Settings: params.yaml; no git repository." in note
    assert note.endswith("Ended: stage2 (failed), subln")


@pytest.mark.parametrize(
    "name",
    [
        "it's",
        '"',
        "a\\'b\\",
        "`x`",
        "two\nlines\ttab",
        "naïve 木 🜁",
        "x" * 20_000,
        "\udcff",
        "%_",
        " ",
    ],
    ids=range(10),
)
def test_a_pipeline_may_have_any_name(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(VARIABLE, name)
    for label in ("subln", "stage2"):
        StageRun(label, Path("work") / label).finish("FINISHED")
    monkeypatch.setenv(VARIABLE, name + "'")
    StageRun("dlm", Path("work/dlm")).finish("FINISHED")
    parents, stages = parents_and_stages()
    assert len(parents) == 2 and len(stages) == 3
    shown = {run.data.tags["wrinklefree.pipeline"] for run in parents}
    assert any(text.startswith(name[:2000]) for text in shown) or name == "\udcff"


def broken_database(kind: str, file: Path) -> contextlib.AbstractContextManager[object]:
    if kind == "a folder":
        file.mkdir()
    elif kind == "no database":
        file.write_bytes(b"no database at all" * 1000)
    elif kind == "a link to nowhere":
        file.symlink_to(file.parent / "absent" / "mlflow.db")
    else:
        connection = sqlite3.connect(file)
        connection.execute("BEGIN EXCLUSIVE")
        return contextlib.closing(connection)
    return contextlib.nullcontext()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("a folder", "is a folder; move it away or set MLFLOW_TRACKING_URI"),
        ("no database", "file is not a database; make it a SQLite file that you can write"),
        ("a link to nowhere", "unable to open database file; make it a SQLite file that you can"),
        ("locked", "does not answer (OperationalError: database is locked); the stage goes on"),
    ],
)
def test_a_database_that_cannot_be_opened_is_said_in_a_line_within_seconds(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    kind: str,
    expected: str,
):
    monkeypatch.setattr(store, "_LOCK_SECONDS", 0.1)
    (project / "mlflow.db").unlink()
    with broken_database(kind, project / "mlflow.db"):
        started = time.monotonic()
        run = StageRun("stage2", WORK)
        run.log_metrics(1, {"train/loss": 1.0})
        assert not run.active and time.monotonic() - started < 5
    said = capfd.readouterr().err
    assert expected in said and len(said.splitlines()) == 1


def test_a_database_that_may_not_be_written_is_said_in_a_line(project: Path):
    (project / "mlflow.db").chmod(0o444)
    command = [sys.executable, "-c", STAGE, "stage2"]
    if os.geteuid() == 0:  # who may write everything, but for this
        if not shutil.which("setpriv"):
            pytest.skip("setpriv is not installed")
        command = ["setpriv", "--bounding-set=-dac_override", *command]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert len(result.stderr.splitlines()) == 1
    assert "attempt to write a readonly database; make it a SQLite file" in result.stderr


@pytest.mark.parametrize("uri", ["foo", "htp://x", "http://[bad", "sqlite:/x.db", "file:./x"])
def test_a_malformed_uri_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], uri: str
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run = StageRun("stage2", WORK)
    run.log_metrics(1, {"train/loss": 1.0})
    run.finish("FINISHED")
    said = capfd.readouterr().err
    assert f"tracking at {uri} failed and is off for the rest of this stage" in said
    assert len(said.splitlines()) == 1


def test_files_that_cannot_be_copied_cost_no_other_tracking(
    project: Path, capfd: pytest.CaptureFixture[str]
):
    (project / "mlartifacts").write_text("a file where the folder should be")
    run = StageRun("stage2", WORK)
    log_steps(run, 1, 3)
    run.log_output(write(Path("models/stage2"), "stage2", {"steps": 3}))
    run.finish("FINISHED")
    _, (stage,) = parents_and_stages()
    assert stage.info.status == "FINISHED" and stage.data.metrics["written/steps"] == 3
    said = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert len(said) == 1 and "refused what was logged (" in said[0] and "mlartifacts" in said[0]


@contextlib.contextmanager
def away(project: Path):
    """The database is a folder for as long as the block runs."""
    hidden = project / "hidden"
    hidden.mkdir()
    for file in project.glob("mlflow.db*"):
        file.rename(hidden / file.name)
    (project / "mlflow.db").mkdir()
    yield
    (project / "mlflow.db").rmdir()
    for file in hidden.iterdir():
        file.rename(project / file.name)


def test_a_store_that_comes_back_gets_all_that_was_logged_in_between(
    project: Path, capfd: pytest.CaptureFixture[str]
):
    run = StageRun("stage2", WORK)
    log_steps(run, 1, 10)
    run.flush()
    with away(project):
        for first in (11, 21, 31):
            log_steps(run, first, first + 9)
            run.flush()
        assert not run.active
    run.finish("FINISHED")
    assert run.active
    _, (stage,) = parents_and_stages()
    assert steps_of(stage.info.run_id) == list(range(1, 41))
    first, last = capfd.readouterr().err.splitlines()
    assert "does not answer" in first and "answers again and has all" in last


def test_a_store_that_is_away_at_the_end_is_asked_once(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    run = StageRun("stage2", WORK)
    attempts: list[str] = []
    for name in ("_send", "_close"):

        def counted(*arguments: object, name: str = name, action: object = getattr(run, name)):
            attempts.append(name)
            return action(*arguments)  # pyright: ignore[reportCallIssue]

        monkeypatch.setattr(run, name, counted)
    with away(project):
        log_steps(run, 1, 10)
        run.finish("FINISHED")
    assert attempts == ["_send"]
    first, last = capfd.readouterr().err.splitlines()
    assert "does not answer" in first and "did not come back" in last


def test_what_the_store_took_without_confirming_is_not_sent_twice(monkeypatch: pytest.MonkeyPatch):
    from mlflow.exceptions import MlflowException

    run = StageRun("stage2", WORK)
    log_batch = run._client.log_batch
    calls = 0

    def loses_an_answer(run_id: str, metrics: list[object]) -> None:
        nonlocal calls
        calls += 1
        log_batch(run_id, metrics=metrics[:7] if calls == 1 else metrics)
        if calls == 1:
            raise MlflowException("the answer got lost")

    monkeypatch.setattr(run._client, "log_batch", loses_an_answer)
    log_steps(run, 1, 10)
    run.flush()
    assert not run.active
    run.finish("FINISHED")
    _, (stage,) = parents_and_stages()
    for name in "abc":
        assert steps_of(stage.info.run_id, f"train/{name}") == list(range(1, 11))


def test_a_store_that_stays_away_is_asked_ever_less_often_and_costs_little_memory(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(tracked, "_KEPT", 300)
    run = StageRun("stage2", WORK)
    attempts = 0
    send = run._send

    def counted(pending: list[tracked._Metric]) -> None:
        nonlocal attempts
        attempts += 1
        send(pending)

    monkeypatch.setattr(run, "_send", counted)
    with away(project):
        for step in range(1, 100):
            log_steps(run, step, step)
            run.flush()
        assert attempts == 1 and not run.active
        monkeypatch.setattr(run, "_next", 0.0)
        log_steps(run, 100, 110)
        run.finish("FINISHED")
    assert not run._due and not run._metrics
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2 and "off for the rest of this stage" in said[1]


def test_an_unreachable_server_does_not_stop_a_stage(project: Path):
    environment = os.environ | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", STAGE, "stage2"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    first, last = result.stderr.splitlines()
    assert "tracking at http://127.0.0.1:9 does not answer" in first
    assert "did not come back: what was logged since then is not there" in last


def test_a_file_is_attached_to_the_run_of_the_pipeline_that_made_the_results(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    (project / "report.html").write_text("a report")
    for pipeline, name in (("first", "old"), ("second", "results"), ("third", "other")):
        monkeypatch.setenv(VARIABLE, pipeline)
        run = StageRun("evaluate", Path("work") / name)
        run.log_output(write(project / name, "evaluate", {"loss": {"base": len(pipeline)}}))
        run.finish("FINISHED")
    assert "is an artifact of run" in attach(Path("report.html"), Path("results"))
    client, _ = recorded()
    with_report = [
        parent.data.tags["wrinklefree.pipeline"]
        for parent in parents_and_stages()[0]
        if [file.path for file in client.list_artifacts(parent.info.run_id)] == ["report.html"]
    ]
    assert with_report == ["second"]


def test_results_that_no_run_made_get_no_file(project: Path):
    write(project / "results", "evaluate", {})
    with pytest.raises(UserError, match="no such file"):
        attach(Path("report.html"), Path("results"))
    (project / "report.html").write_text("a report")
    with pytest.raises(UserError, match="no run there made results"):
        attach(Path("report.html"), Path("results"))


@pytest.mark.parametrize("same_disk", [True, False])
def test_a_model_of_mlflow_is_logged_with_its_weights_and_without_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_disk: bool
):
    monkeypatch.setattr(tracked, "MAX_FILE_BYTES", 10)
    if not same_disk:
        monkeypatch.setattr(Path, "hardlink_to", failing)
    files = {"model.safetensors": "weights of 20 bytes.", "model.gguf": "another 20 bytes...."}
    for name, more in (("loads", {"MLmodel": "flavors:"}), ("does_not", {})):
        with writing_artifact(tmp_path / name, Origin("export", {}, {})) as (folder, _):
            for file, content in (files | more).items():
                (folder / file).write_text(content)
        run = StageRun(name, Path("work") / name)
        run.log_output(open_artifact(tmp_path / name))
        run.log_output(open_artifact(tmp_path / name))  # of a stage that went on
        run.finish("FINISHED")
    logged = next((tmp_path / "mlartifacts").rglob("model.safetensors"))
    assert logged.parent.name == "loads" and logged.read_text() == files["model.safetensors"]
    assert logged.samefile(tmp_path / "loads" / "model.safetensors") == same_disk
    names = {path.name for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()}
    assert names == {"manifest.json", "MLmodel", "model.safetensors"}


def failing(*_: object) -> None:
    raise OSError("another disk")
