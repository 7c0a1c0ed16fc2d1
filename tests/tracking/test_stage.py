from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wrinklefree.errors import UserError
from wrinklefree.schema.reads import shaping
from wrinklefree.tracking import progress as data_progress
from wrinklefree.tracking import stage as frame
from wrinklefree.tracking.artifact import Origin, read_manifest, writing_artifact
from wrinklefree.tracking.kept import restore
from wrinklefree.tracking.progress import Progress, progress
from wrinklefree.tracking.stage import Stage, stage_main
from wrinklefree.tracking.trainings import checkpoints_in

PROJECT = Path(__file__).parents[2]
LOG = Path("logs/export.log")
SETTINGS = '{"export": {"linear_class": "bitlinear"}, "base": {"source": {"kind": "scratch"}}}'
pytestmark = pytest.mark.filterwarnings("default")
RunStage = Callable[..., int]


class Untracked:
    """Stands in for the MLflow run."""

    id = ""

    def __init__(self, label: str, work: Path) -> None:
        self.label = label

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


@pytest.fixture
def run_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunStage]:
    """Runs a function as the stage export of a project of its own; returns the exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(frame, "StageRun", Untracked)
    before = signal.getsignal(signal.SIGTERM)

    def run(
        function: Callable[[Stage], dict[str, Any]],
        settings: str = SETTINGS,
        *options: str,
        name: str = "export",
        output: str = "out",
        **frame: Any,
    ) -> int:
        script = PROJECT / "workflow" / "scripts" / f"{name}.py"
        command = [str(script), "--settings", settings, "--output", output, *options]
        monkeypatch.setattr(sys, "argv", command)
        try:
            stage_main(name, function, **frame)
        except SystemExit as exit_:
            assert isinstance(exit_.code, int)
            return exit_.code
        return 0

    yield run
    signal.signal(signal.SIGTERM, before)


def test_warnings_progress_and_the_error_are_in_the_log_and_on_stderr(
    run_stage: RunStage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(data_progress, "LINE_SECONDS", 0.0)

    def stage(stage: Stage) -> dict[str, Any]:
        warnings.warn("a record was skipped", stacklevel=2)
        assert list(progress("ab", "read x", "pages", 2)) == ["a", "b"]
        Progress("export", "steps", 2).advance(1, "loss 3", line=True)
        raise UserError("record 7 of x is no text")

    assert run_stage(stage) == 2
    lines = LOG.read_text().splitlines()
    assert lines == capsys.readouterr().err.splitlines()
    expected = (
        "warning: export: a record was skipped",
        "read x: 1 of 2 pages (50%)",
        "read x: 2 of 2 pages (100%)",
        "read x: all 2 pages in 00:00",
        "export: 1 of 2 steps (50%), 00:00 left, loss 3",
        "error: export: record 7 of x is no text",
    )
    for line, beginning in zip(lines, expected, strict=True):
        assert line.startswith(beginning)


def test_where_a_terminal_shows_bars_the_log_has_lines(
    run_stage: RunStage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(data_progress, "LINE_SECONDS", 0.0)

    def stage(stage: Stage) -> dict[str, Any]:
        assert list(progress("ab", "read x", "pages", 2)) == ["a", "b"]
        bar = Progress("export", "steps", 2)
        bar.advance(1, "loss 3")
        bar.close()
        return {}

    assert run_stage(stage) == 0
    lines = LOG.read_text().splitlines()
    assert lines[0].startswith("read x: 1 of 2 pages") and len(lines) == 5
    assert lines[3].startswith("export: 1 of 2 steps") and lines[3].endswith("loss 3")
    shown = capsys.readouterr().err
    assert "read x: 100%|" in shown and "1 of 2 pages" not in shown and "1 of 2 steps" not in shown


def test_sections_of_later_stages_are_foreseen_and_in_no_manifest(run_stage: RunStage):
    given = {"seed": 1, "subln": {"gain": "ones"}, "export": {"gguf": ["F32"]}, "dlm": {}}
    seen = []

    def subln(stage: Stage) -> dict[str, Any]:
        seen.append((stage.settings, stage.foreseen))
        return {}

    assert run_stage(subln, json.dumps(given), name="subln") == 0
    own = {"seed": 1, "subln": {"gain": "ones"}}
    assert seen == [(own, {"export": {"gguf": ["F32"]}})]
    assert read_manifest(Path("out")).settings == own


@pytest.mark.parametrize(("dvc", "last"), [(True, True), (True, False), (False, True)])
def test_the_last_stage_of_dvc_says_what_the_run_came_to(
    run_stage: RunStage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    dvc: bool,
    last: bool,
):
    for folder, key in (("results", "distill_ar"), ("models/export", "model")):
        with writing_artifact(tmp_path / folder, Origin("stage", {key: "a" * 64}, {})) as (made, _):
            score = {"loss": 1.0, "loss_standard_error": None}
            models = dict.fromkeys(("base", "naive", "distill_ar"), score)
            cost = {"bytes_float16": 1, "picojoules": 1}
            found = {"models": models, "cost": dict.fromkeys(("base", "distill_ar"), cost)}
            (made / "evaluation.json").write_text(json.dumps(found))
    if dvc:
        monkeypatch.setenv("DVC_STAGE", "export")
    assert run_stage(lambda stage: {}, last=last) == 0
    assert ("Held-out loss in nats per token" in capfd.readouterr().out) == (dvc and last)


def test_a_training_that_ended_is_gone_on_from_where_what_follows_it_fails(
    run_stage: RunStage, monkeypatch: pytest.MonkeyPatch
):
    found = []

    def stage(stage: Stage) -> dict[str, Any]:
        found.append([step for step, _ in checkpoints_in(stage.work)])
        (stage.work / "step-00000010").mkdir(exist_ok=True)
        return {}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(frame, "write_provenance", full)
        assert run_stage(stage) == 2
    assert [run_stage(stage), run_stage(stage)] == [0, 0]
    assert found == [[], [10], []]


def test_settings_without_an_effect_are_no_part_of_what_an_artifact_is(run_stage: RunStage):
    digests, seen = [], []

    def stage(stage: Stage) -> dict[str, Any]:
        seen.append(stage.settings["tokenize"].get("processes"))
        return {}

    for processes, megabytes in ((1, 64), (2, 64), (2, 32)):
        tokenize = {"processes": processes, "shard_megabytes": megabytes}
        settings = json.dumps({"sources": {"web": {}}, "tokenize": tokenize})
        options = {"name": "tokenize", "instance": "source"}
        assert run_stage(stage, settings, "--source", "web", **options) == 0
        digests.append(read_manifest(Path("out")).digest)
    assert seen == [1, 2, 2]
    assert digests[0] == digests[1] != digests[2]


def test_what_shapes_a_training_has_an_effect():
    training = {"steps": 3, "evaluate_interval": 2, "batch_size": 4, "optimizer": {"name": "muon"}}
    silent = {"log_interval": 1, "checkpoint_interval": 2}
    assert shaping({"stage2": training | silent}) == {"stage2": training}


def test_stages_and_their_instances_have_seeds_of_their_own(run_stage: RunStage):
    seeds = []

    def stage(stage: Stage) -> dict[str, Any]:
        others = (replace(stage, name="x"), replace(stage, instance="x"))
        of_another = replace(stage, settings={"seed": 2})
        seeds.extend(one.seed for one in (stage, stage, *others, of_another))
        return {}

    function = lambda given: stage(replace(given, settings={"seed": 1}))  # noqa: E731
    assert run_stage(function) == 0
    assert seeds[0] == seeds[1] and len(set(seeds)) == 4


def test_wrong_settings_are_in_the_log(run_stage: RunStage):
    assert run_stage(lambda stage: {}, "{") == 2
    assert LOG.read_text().startswith("error: export: --settings: not valid JSON")


def test_an_unexpected_error_is_in_the_log_with_its_traceback(run_stage: RunStage):
    with pytest.raises(ZeroDivisionError):
        run_stage(lambda stage: {"share": 1 / 0})
    assert "Traceback" in LOG.read_text() and "ZeroDivisionError" in LOG.read_text()


def test_a_terminated_stage_says_so_in_the_log(run_stage: RunStage):
    def stage(stage: Stage) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("not reached")

    assert run_stage(stage) == 143
    assert LOG.read_text().startswith("export: terminated; run again to go on")
    assert not Path("out").exists()


def test_a_log_that_cannot_be_written_is_said_once_and_costs_nothing(
    run_stage: RunStage, capsys: pytest.CaptureFixture[str]
):
    LOG.parent.mkdir()
    LOG.symlink_to("/dev/full")

    def stage(stage: Stage) -> dict[str, Any]:
        stage.terminal.say("first")
        stage.terminal.say("second")
        return {}

    assert run_stage(stage) == 0
    lines = capsys.readouterr().err.splitlines()
    warning = "warning: export: logs/export.log ends here: No space left on device"
    assert lines[:3] == ["first", warning, "second"]


def test_who_finds_the_stage_running_leaves_its_log_alone(run_stage: RunStage):
    def stage(stage: Stage) -> dict[str, Any]:
        stage.terminal.say("first")
        assert run_stage(lambda stage: {}) == 2
        return {}

    assert run_stage(stage) == 0
    assert LOG.read_text().startswith("first\n") and "already running" not in LOG.read_text()


def writes(stage: Stage) -> dict[str, Any]:
    (stage.folder / "a.txt").write_text("text")
    return {}


FETCH = json.dumps(
    {
        "held_out": {"fraction": 0.1},
        "sources": {name: {"kind": "generated"} for name in ("maths", "e; touch pwned", "..")},
    }
)


def test_a_stage_takes_its_instance_from_dvc(run_stage: RunStage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DVC_STAGE", "research/dvc.yaml:fetch@maths")
    seen = []

    def stage(stage: Stage) -> dict[str, Any]:
        seen.append(stage.instance)
        return writes(stage)

    output = "data/raw/{source}"
    assert run_stage(stage, FETCH, name="fetch", instance="source", output=output) == 0
    assert seen == ["maths"] and Path("data/raw/maths/a.txt").is_file()


@pytest.mark.parametrize("engine", ["dvc", "option"])
@pytest.mark.parametrize(
    "name", ["e; touch pwned", "../../../evil", "..", "a/b", "A", "a\n", "a" * 65]
)
def test_a_name_that_is_no_name_reaches_neither_lock_nor_log_nor_output(
    run_stage: RunStage,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    engine: str,
):
    options = ["--source", name] if engine == "option" else []
    monkeypatch.setenv("DVC_STAGE", f"fetch@{name}" if engine == "dvc" else "fetch@maths")
    project = Path("project")
    project.mkdir()
    monkeypatch.chdir(project)
    output = "data/raw/{source}"
    status = run_stage(writes, FETCH, *options, name="fetch", instance="source", output=output)
    assert status == 2
    assert "is no name; expected lower-case letters" in capsys.readouterr().err
    assert [path.name for path in Path("..").iterdir()] == ["project"]
    assert not list(Path().iterdir())


def test_settings_may_come_in_a_file_of_any_length(run_stage: RunStage):
    content = json.loads(FETCH)
    content["sources"]["maths"]["paths"] = [f"folder/{number}.txt" for number in range(50_000)]
    Path("sections.json").write_text(json.dumps(content))
    seen = []

    def stage(stage: Stage) -> dict[str, Any]:
        seen.append(len(stage.settings["sources"]["maths"]["paths"]))
        return writes(stage)

    options = ("sections.json", "--source", "maths")
    assert run_stage(stage, *options, name="fetch", instance="source") == 0
    assert seen == [50_000]


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_a_file_of_settings_that_is_no_object_is_an_error(run_stage: RunStage, content: str):
    Path("sections.json").write_text(content)
    assert run_stage(writes, "sections.json") == 2
    assert LOG.read_text().startswith("error: export: --settings: ")


def test_a_folder_of_the_users_is_refused_before_any_work(run_stage: RunStage):
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("years")
    assert run_stage(lambda stage: 1 / 0) == 2  # pyright: ignore[reportArgumentType]
    assert "out: holds thesis.txt" in LOG.read_text()
    assert Path("out/thesis.txt").read_text() == "years"


def test_of_several_processes_one_says_that_a_stage_takes_one(
    run_stage: RunStage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert run_stage(lambda stage: 1 / 0) == 2  # pyright: ignore[reportArgumentType]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: export: 2 processes were started (WORLD_SIZE)")


def fails(stage: Stage) -> dict[str, Any]:
    raise UserError("the data is bad")


def is_terminated(stage: Stage) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError("not reached")


def is_interrupted(stage: Stage) -> dict[str, Any]:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("ends", "status"), [(fails, 2), (is_terminated, 143), (is_interrupted, 130)]
)
def test_a_rerun_that_fails_says_how_the_last_artifact_comes_back(
    run_stage: RunStage, ends: Any, status: int
):
    assert run_stage(writes) == 0
    Path("out/manifest.json").unlink()  # as an engine does before a rerun
    assert run_stage(ends) == status
    assert LOG.read_text().splitlines()[-1] == (
        "export: wrinklefree restore out puts back the last finished one"
    )
    assert restore(Path("out")) == "export"
    assert run_stage(ends) == status
    assert "wrinklefree restore" not in LOG.read_text(), "it stands"


@pytest.mark.parametrize("name", ["work", "logs", "out", "out/.."])
def test_a_file_in_a_folders_place_is_one_sentence(
    run_stage: RunStage, capsys: pytest.CaptureFixture[str], name: str
):
    Path(name.split("/")[0]).write_text("years")
    output = f"{name}/deeper" if name.startswith("out") else "out"
    assert run_stage(writes, output=output) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: export: ") and "is a file and must be a folder" in line


@pytest.mark.parametrize("place", ["project", "input", "settings", "output"])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_what_another_user_may_not_touch_is_one_sentence(place: str):
    """As a process of its own, for it gives up its rights."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        project = Path(folder)
        project.chmod(0o755 if place == "project" else 0o777)
        for name in ("input", "output"):
            (project / name).mkdir()
            (project / name).chmod(0o700 if name == place else 0o777)
        (project / "settings.json").write_text(SETTINGS)
        (project / "settings.json").chmod(0o600 if place == "settings" else 0o644)
        result = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, *(["--model", "input/model"] * (place == "input"))],
            cwd=project, capture_output=True, text=True, check=False,
            env=os.environ
            | {"PYTHONPATH": str(PROJECT / "src")}
            | {"SCRIPT": str(PROJECT / "workflow" / "scripts" / "export.py")},
        )  # fmt: skip
    lines = [line for line in result.stderr.splitlines() if not line.startswith("warning")]
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1 and "Permission denied; run as a user who may" in lines[0], lines


AS_NOBODY = """
import os, sys
from wrinklefree.tracking import stage
class Untracked:
    id = ""
    def __init__(self, *_): pass
    def __getattr__(self, name): return lambda *_, **__: None
stage.StageRun = Untracked
"".encode("unicode_escape")  # what another user could not load from this one's folders
os.setgid(65534)
os.setuid(65534)
inputs = ["model"] if len(sys.argv) > 1 else []
sys.argv[0] = os.environ["SCRIPT"]
sys.argv += ["--settings", "settings.json", "--output", "output/export"]
stage.stage_main("export", lambda stage: {}, inputs=inputs)
"""


def test_codes_that_a_terminal_would_obey_are_spelled_out(
    run_stage: RunStage, capsys: pytest.CaptureFixture[str]
):
    def stage(stage: Stage) -> dict[str, Any]:
        warnings.warn("a\x1b[2Jb", stacklevel=2)
        raise UserError("c\x1b]0;title\x07d\x9b2Je\tf")

    assert run_stage(stage) == 2
    for text in (LOG.read_text(), capsys.readouterr().err):
        assert "a\\x1b[2Jb" in text and "c\\x1b]0;title\\x07d\\x9b2Je\tf" in text
        assert "\x1b" not in text and "\x9b" not in text
