"""What Snakemake says while it runs this workflow, and nothing else: ``--logger wrinklefree``.

A line for each job that begins, with the number of jobs that are done, and why it runs where that
is not plain. Warnings, errors and whatever is not known here come as Snakemake words them, and so
does all of a dry run, of ``--verbose`` and of ``--printshellcmds``. Snakemake finds the plugin by
the name of this package.
"""

from __future__ import annotations

import logging
import sys
import textwrap
import time
from collections.abc import Mapping

from snakemake.logging import ColorizingTextHandler, DefaultFormatter
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

WIDTH = 80
_CHATTER = (
    "Assuming unrestricted shared filesystem",
    "Building DAG of jobs",
    "Complete log",
    "Execute ",
    "Provided cores",
    "Select jobs to execute",
    "Singularity containers: ignored",
    "Using shell",
)
"""How lines begin that tell a person nothing about the run."""
_UNSAID = {
    LogEvent.JOB_FINISHED,
    LogEvent.JOB_STARTED,
    LogEvent.PROGRESS,
    LogEvent.RESOURCES_INFO,
    LogEvent.WORKFLOW_STARTED,
}
_PLAIN_REASONS = ("Missing output files", "Input files updated by another job")


class LogHandler(LogHandlerBase):
    """Writes to stderr, coloured where that is a terminal, in lines of :data:`WIDTH` columns."""

    @property
    def writes_to_stream(self) -> bool:
        """Yes, in place of Snakemake's own handler."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """No."""
        return False

    @property
    def has_filter(self) -> bool:
        """No: ``--quiet`` holds as ever."""
        return False

    @property
    def has_formatter(self) -> bool:
        """Yes."""
        return True

    @property
    def needs_rulegraph(self) -> bool:
        """No."""
        return False

    def __post_init__(self) -> None:
        settings = self.common_settings
        formatter = DefaultFormatter(settings.quiet, settings.show_failed_logs)
        stream = sys.stdout if settings.stdout else sys.stderr
        self._theirs = ColorizingTextHandler(settings.nocolor, stream, formatter)
        self._everything = settings.dryrun or settings.verbose or settings.printshellcmds
        self._done = self._total = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Print ``record``, in our words if they are fewer."""
        if self._everything or record.levelno > logging.INFO:
            self._theirs.emit(record)
            return
        event = getattr(record, "event", None)
        if event == LogEvent.PROGRESS:
            self._done, self._total = record.__dict__["done"], record.__dict__["total"]
        if event == LogEvent.RUN_INFO and "stats" in record.__dict__:
            self._total = record.__dict__["stats"].get("total", 0)
            self._say(jobs_line(record.__dict__["stats"]))
        elif event == LogEvent.JOB_INFO and record.__dict__["rule_msg"]:
            self._say(self._job(record.__dict__))
        elif event not in _UNSAID and not str(record.msg or "").lstrip().startswith(_CHATTER):
            self._theirs.emit(record)

    def _job(self, job: Mapping[str, str]) -> str:
        head = f"{time.strftime('%H:%M:%S')} [{self._done}/{self._total}] {job['rule_msg']}"
        return "\n".join([_cut(head), *(f"    {line}" for line in reasons(job["reason"]))])

    def _say(self, text: str) -> None:
        stream = self._theirs.stream
        bold, plain = ("", "") if self._theirs.nocolor else ("\033[1m", "\033[0m")
        print(f"{bold}{text}{plain}", file=stream, flush=True)


def jobs_line(stats: Mapping[str, int]) -> str:
    """How many jobs there are of each rule, as ``22 jobs: 5 fetch_source, base, subln``."""
    rules = [
        f"{count} {rule}" if count > 1 else rule for rule, count in stats.items() if rule != "total"
    ]
    jobs = f"{stats.get('total', 0)} jobs: {', '.join(rules)}"
    return textwrap.fill(jobs, WIDTH, subsequent_indent="    ", break_on_hyphens=False)


def reasons(reason: str | None) -> list[str]:
    """Why a job runs, a line each; none where it has not run yet, or what it reads is new."""
    found = [part.strip() for part in str(reason or "").split(";")]
    said = [part for part in found if part and not part.startswith(_PLAIN_REASONS)]
    return [_cut(line, WIDTH - 4) for part in said for line in part.splitlines() if line.strip()]


def _cut(text: str, width: int = WIDTH) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
