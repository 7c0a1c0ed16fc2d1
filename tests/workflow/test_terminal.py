from __future__ import annotations

import io
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_wrinklefree import LogHandler, jobs_line, reasons


def said(*records: tuple[str | None, dict[str, Any]], **settings: Any) -> str:
    """What is printed of messages and their fields."""
    stream = io.StringIO()
    given: dict[str, Any] = {"quiet": set(), "nocolor": True, "stdout": False}
    given |= dict.fromkeys(("dryrun", "verbose", "printshellcmds", "show_failed_logs"), False)
    handler = LogHandler(SimpleNamespace(**given | settings), None)  # type: ignore[arg-type]
    handler._theirs.stream = stream
    for message, fields in records:
        level = fields.pop("level", logging.INFO)
        record = logging.LogRecord("snakemake", level, __file__, 1, message, None, None)
        record.__dict__.update(fields)
        handler.emit(record)
    return stream.getvalue()


def job(reason: str) -> tuple[None, dict[str, Any]]:
    return None, {
        "event": LogEvent.JOB_INFO,
        "rule_msg": "Train under quantization",
        "reason": reason,
        "jobid": 3,
    }


def progress(done: int) -> tuple[None, dict[str, Any]]:
    return None, {"event": LogEvent.PROGRESS, "done": done, "total": 22}


def test_a_job_is_a_line_with_the_jobs_that_are_done():
    (line,) = said(progress(7), job("Missing output files: models/stage2")).splitlines()
    assert line.endswith("[7/22] Train under quantization")


def test_why_a_job_runs_is_said_where_it_is_not_plain():
    printed = said(job("Code has changed since last execution; Forced execution"))
    assert printed.splitlines()[1:] == [
        "    Code has changed since last execution",
        "    Forced execution",
    ]


def test_no_line_is_longer_than_80_columns():
    long = {"event": LogEvent.JOB_INFO, "rule_msg": "word " * 40, "reason": "Params " * 40}
    stats = {f"rule_{i}": i for i in range(30)} | {"total": 435}
    run = {"event": LogEvent.RUN_INFO, "stats": stats}
    assert max(map(len, said((None, long), ("Job stats", run)).splitlines())) <= 80


def test_what_says_nothing_of_the_run_is_left_out():
    chatter = ["Building DAG of jobs...", "Select jobs to execute...", "Execute 2 jobs...\n"]
    started = {"event": LogEvent.WORKFLOW_STARTED}
    assert said(*((text, {}) for text in chatter), ("…", started)) == ""


def test_warnings_errors_and_unknown_messages_come_as_snakemake_words_them():
    words = ("Nothing to be done", {}), ("Building DAG: a cycle", {"level": logging.ERROR})
    assert said(*words) == "Nothing to be done\nBuilding DAG: a cycle\n"


@pytest.mark.parametrize("asked", ["dryrun", "verbose", "printshellcmds"])
def test_all_is_said_where_all_is_asked_for(asked: str):
    printed = said(("Building DAG of jobs...", {}), job("Forced execution"), **{asked: True})
    assert "Building DAG" in printed
    assert "Reason: Forced execution" in printed


def test_jobs_are_counted_by_rule():
    assert jobs_line({"base": 1, "fetch": 5, "total": 6}) == "6 jobs: base, 5 fetch"


def test_only_new_inputs_and_no_outputs_are_no_reason_to_speak_of():
    assert reasons("Missing output files: a; Input files updated by another job: b") == []
    assert reasons(None) == []
