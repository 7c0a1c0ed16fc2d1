from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wrinklefree.data import progress as data_progress
from wrinklefree.data.progress import progress
from wrinklefree.errors import UserError
from wrinklefree.tracking import stage as frame
from wrinklefree.tracking import terminal
from wrinklefree.tracking.stage import Stage, stage_main

PROJECT = Path(__file__).parents[2]
LOG = Path("logs/export.log")
pytestmark = pytest.mark.filterwarnings("default")
RunStage = Callable[..., int]


class Untracked:
    """Stands in for the MLflow run."""

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

    def run(function: Callable[[Stage], dict[str, Any]], settings: str | None = None) -> int:
        script = PROJECT / "workflow" / "scripts" / "export.py"
        settings = settings or '{"export": {"linear_class": "bitlinear"}}'
        command = [str(script), "--settings", settings, "--output", "out"]
        monkeypatch.setattr(sys, "argv", command)
        try:
            stage_main("export", function)
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
        stage.terminal.progress(total=2).advance(1, "loss 3", line=True)
        raise UserError("record 7 of x is no text")

    assert run_stage(stage) == 2
    lines = LOG.read_text().splitlines()
    assert lines == capsys.readouterr().err.splitlines()
    expected = (
        "warning: export: a record was skipped",
        "read x: 1 of 2 pages (50%)",
        "read x: 2 of 2 pages (100%)",
        "read x: all 2 pages in 00:00",
        "export step 1/2, 0:00 left loss 3",
        "error: export: record 7 of x is no text",
    )
    for line, beginning in zip(lines, expected, strict=True):
        assert line.startswith(beginning)


def test_where_a_terminal_shows_bars_the_log_has_lines(
    run_stage: RunStage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for module, name in ((data_progress, "LINE_SECONDS"), (terminal, "_LINE_SECONDS")):
        monkeypatch.setattr(module, name, 0.0)

    def stage(stage: Stage) -> dict[str, Any]:
        assert list(progress("ab", "read x", "pages", 2)) == ["a", "b"]
        bar = stage.terminal.progress(total=2)
        bar.advance(1, "loss 3")
        bar.close()
        return {}

    assert run_stage(stage) == 0
    lines = LOG.read_text().splitlines()
    assert lines[0].startswith("read x: 1 of 2 pages") and len(lines) == 5
    assert lines[3].startswith("export step 1/2") and lines[3].endswith("loss 3")
    shown = capsys.readouterr().err
    assert "read x: 100%|" in shown and "1 of 2 pages" not in shown and "step 1/2" not in shown


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
