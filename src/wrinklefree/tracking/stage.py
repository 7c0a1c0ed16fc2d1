"""The frame of every stage: arguments, settings, checked inputs, lock, tracking, artifact.

A script hands its stage function to :func:`stage_main`; everything that is alike for all stages
happens here, and nothing else does.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from wrinklefree.errors import UserError
from wrinklefree.schema.load import read_yaml, validate_section, without_nulls
from wrinklefree.schema.reads import foreseen, narrow, shaping
from wrinklefree.tracking.artifact import (
    Origin,
    check_replaceable,
    open_artifact,
    writing_artifact,
)
from wrinklefree.tracking.code import code_digest
from wrinklefree.tracking.cpus import use_available_cpus
from wrinklefree.tracking.files import explain_system_error, sha256_of_json
from wrinklefree.tracking.kept import (
    IN_DVC,
    has_copy,
    is_forced,
    is_kept,
    keep,
    made_already,
    restore,
)
from wrinklefree.tracking.locks import LOCKS, exclusive_lock
from wrinklefree.tracking.provenance import library_versions, write_provenance
from wrinklefree.tracking.runs import Outcome, StageRun
from wrinklefree.tracking.terminal import Terminal
from wrinklefree.tracking.trainings import (
    WORK,
    Continuation,
    begin,
    continued_from,
    finish,
    is_asked_to_continue,
)

_COMMAND_LINE = "wrinklefree.cli"
_INSTANCE = re.compile(r"[a-z0-9][a-z0-9_]{0,63}")
"""A source, student, run, arm, experiment or architecture: it becomes a part of paths."""
_SEED_DIGITS = 12
_T = TypeVar("_T")


@dataclass(frozen=True)
class Stage:
    """What a stage function works with."""

    name: str
    instance: str | None
    """Which of a stage that has several: a source, student, run, arm, experiment, architecture."""
    settings: dict[str, Any]
    """The sections of ``params.yaml`` that the stage may read, nested as there."""
    inputs: dict[str, Path]
    """Folders of the input artifacts by name, all checked."""
    folder: Path
    """An empty folder to write the artifact's files into."""
    work: Path
    """A folder that outlives a killed stage; its name changes with inputs, settings and code."""
    run: StageRun
    terminal: Terminal
    continuation: Continuation | None = None
    """What ``wrinklefree continue`` asked to go on from, until it is taken up."""
    foreseen: dict[str, Any] = field(default_factory=dict)
    """Sections of later stages: for a refusal before training, and for nothing that is written."""

    def section(self, path: str, kind: type[_T] | Any) -> Any:
        """The settings at a dotted path, as the pydantic type ``kind``."""
        value = setting(self.settings, path)
        return validate_section(kind, value, f"settings of {self.name}: {path}")

    def collection(self, name: str) -> dict[str, Path]:
        """Folders of the input artifacts of a collection, by their own names."""
        prefix = f"{name}."
        return {
            key.removeprefix(prefix): path
            for key, path in self.inputs.items()
            if key.startswith(prefix)
        }

    @property
    def seed(self) -> int:
        """The stage's own seed, from the pipeline's: stages must not repeat each other's draws."""
        own = sha256_of_json([self.settings["seed"], self.name, self.instance])
        return int(own[:_SEED_DIGITS], 16)

    @property
    def downloads(self) -> Path:
        """Where downloaded packages are kept between stages, by hash."""
        return WORK / "downloads"


def setting(settings: dict[str, Any], path: str) -> Any:
    """The value at a dotted path."""
    value: Any = settings
    for key in path.split("."):
        value = value[key]
    return value


StageFunction = Callable[[Stage], dict[str, Any]]


def stage_main(
    name: str,
    function: StageFunction,
    *,
    inputs: Sequence[str] = (),
    collections: Sequence[str] = (),
    members: str = "sources",
    instance: str | None = None,
    last: bool = False,
) -> None:
    """Run one stage from the command line, and exit.

    Parameters
    ----------
    function : makes the artifact in ``stage.folder`` and returns facts for its manifest.
    inputs : names of input artifacts; each is an option whose value is a folder.
    collections : names of options whose folder holds several artifacts.
    members : dotted path of the settings whose keys or items are the names of those artifacts.
    instance : name of the option that says which instance of the stage, where it has
        several.
    last : whether a run may end with it. DVC calls nothing at its end, so that the stage then says
        what the run came to, once the other last one is done too.
    """
    arguments = _parse(name, inputs, collections, instance)
    chosen = getattr(arguments, instance) if instance else None
    label = f"{name}.{chosen}" if chosen else name
    output = Path(arguments.output)
    signal.signal(signal.SIGTERM, _terminated)
    use_available_cpus()
    with Terminal(label) as terminal:
        warnings.showwarning = terminal.show_warning
        try:
            _require_one_process()
            busy = f"{label} is already running here,"
            with exclusive_lock(LOCKS / f"{label}.lock", busy=busy):
                # Before anything fails or warns, but not into the log of whoever holds the lock.
                terminal.open_log()
                given = _settings(arguments.settings)
                settings, later = narrow(given, name, chosen), foreseen(given, name)
                names = sorted(map(str, setting(settings, members))) if collections else []
                paths = _input_paths(arguments, inputs, collections, names)
                _run(name, chosen, function, settings, later, paths, output, terminal)
        except UserError as error:
            terminal.say(f"error: {label}: {error}")
            status = 2
        except KeyboardInterrupt:
            terminal.say(f"{label}: interrupted; run again to go on from the last checkpoint")
            status = 130
        except _Terminated as terminated:
            terminal.say(f"{label}: terminated; run again to go on from the last checkpoint")
            status = terminated.code
        except Exception as error:
            terminal.record(traceback.format_exc())
            if explanation := explain_system_error(error, f"{output} or a checkpoint"):
                terminal.say(f"error: {label}: {explanation}")
                status = 2
            else:
                _say_what_is_kept(output, terminal)
                raise
        else:
            if last and IN_DVC in os.environ:
                # In another process: an edit of what it prints must not rerun the stage.
                answer = [sys.executable, "-P", "-m", _COMMAND_LINE, "answer", "--when-whole"]
                subprocess.run(answer, check=False)
            return
        _say_what_is_kept(output, terminal)
        sys.exit(status)


def _run(
    name: str,
    instance: str | None,
    function: StageFunction,
    settings: dict[str, Any],
    later: dict[str, Any],
    paths: dict[str, Path],
    output: Path,
    terminal: Terminal,
) -> None:
    started = time.monotonic()
    artifacts = {key: open_artifact(path) for key, path in paths.items()}
    script = Path(sys.argv[0]).resolve()
    digests = {key: artifact.manifest.digest for key, artifact in artifacts.items()}
    origin = Origin(stage=name, inputs=digests, settings=shaping(settings))
    code = code_digest(script, Path(__file__).resolve().parents[2])
    versions = library_versions()
    check_replaceable(output)  # now rather than after days of work
    label = f"{name}.{instance}" if instance else name
    made_from = {**asdict(origin), "code": code, "versions": versions}
    wanted = is_forced(name, output) or is_asked_to_continue(WORK / label)
    if not wanted and made_already(output, origin, code, versions):
        restore(output)
        terminal.say(f"{label}: {output} is put back: made of the same inputs, settings and code")
        return
    work, continuation, passed_by = begin(WORK / label, made_from)
    if passed_by:
        terminal.say(passed_by)
    run = StageRun(label, work)
    outcome: Outcome = "FAILED"
    try:
        run.log_parameters(settings)
        run.log_inputs(artifacts)
        with writing_artifact(output, origin) as (folder, facts):
            stage = Stage(
                name, instance, settings, paths, folder, work, run, terminal, continuation, later
            )
            facts.update(function(stage))
            if event := continued_from(work):
                facts["continued_from"] = event
        seconds = time.monotonic() - started
        write_provenance(
            output, artifacts, code=code, versions=versions, mlflow_run=run.id, seconds=seconds
        )
        change = "no change" if is_kept(output) else "done"
        if reason := keep(output):
            terminal.say(f"{label}: no second copy is kept: {reason}")
        finish(work)  # only now: until here, what fails leaves a checkpoint to go on from
        run.log_output(open_artifact(output))
        outcome = "FINISHED"
    except (KeyboardInterrupt, _Terminated):
        outcome = "KILLED"
        raise
    finally:
        run.finish(outcome)
    terminal.say(f"{label}: {output} {change} in {seconds:.0f} s")


def _parse(
    name: str, inputs: Sequence[str], collections: Sequence[str], instance: str | None
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=f"The {name} stage (docs/stages.md).")
    parser.add_argument(
        "--settings",
        required=True,
        help="a params file, or the sections that this stage reads: JSON, or a .json file of it",
    )
    # DVC writes names of params.yaml into the command as they are, and a shell reads it: from DVC a
    # stage takes its own name, which is checked, and {source} in a folder stands for it.
    of_dvc = os.environ.get(IN_DVC, "").partition(f"{name}@")[2] or None
    braces = f"; {{{instance}}} in it is replaced" if instance else ""
    if instance:
        parser.add_argument(f"--{instance}", default=of_dvc, required=not of_dvc)
    for key in inputs:
        option = "--" + key.replace("_", "-")
        parser.add_argument(option, required=True, help=f"folder of an artifact{braces}")
    for key in collections:
        parser.add_argument(f"--{key}", required=True, help="folder of several artifacts")
    parser.add_argument("--output", required=True, help=f"folder to write{braces}")
    arguments = parser.parse_args()
    if instance:
        chosen = getattr(arguments, instance)
        if not _INSTANCE.fullmatch(chosen):
            parser.error(
                f"argument --{instance}: {chosen[:80]!r} is no name; expected lower-case letters,"
                " digits and underscores"
            )
        for key in ("output", *inputs):
            given = getattr(arguments, key)
            setattr(arguments, key, given.replace(f"{{{instance}}}", chosen))
    return arguments


def _require_one_process() -> None:
    """Raise a UserError where several processes were started for the stage: one says so for all."""
    if (count := os.environ.get("WORLD_SIZE", "1")) != "1":
        if os.environ.get("RANK", "0") != "0":
            sys.exit(2)
        raise UserError(
            f"{count} processes were started (WORLD_SIZE), and a stage runs in one: start it"
            " without torchrun. A script of your own can train in several, with the Trainer of"
            " wrinklefree.train.loop"
        )


def _say_what_is_kept(output: Path, terminal: Terminal) -> None:
    if has_copy(output):
        terminal.say(
            f"{terminal.label}: wrinklefree restore {output} puts back the last finished one"
        )


def _input_paths(
    arguments: argparse.Namespace,
    inputs: Sequence[str],
    collections: Sequence[str],
    members: Sequence[str],
) -> dict[str, Path]:
    """Folders of the input artifacts; those of a collection as ``<collection>.<member>``."""
    paths = {key: Path(getattr(arguments, key)) for key in inputs}
    for key in collections:
        root = Path(getattr(arguments, key))
        paths.update({f"{key}.{member}": root / member for member in members})
    return paths


def _settings(given: str) -> dict[str, Any]:
    """The sections of a params file, which is checked, of JSON or of a file of JSON."""
    of_json = given.endswith(".json")
    if of_json or given.lstrip().startswith("{"):
        try:
            parameters = json.loads(Path(given).read_bytes() if of_json else given)
        except (ValueError, RecursionError) as error:
            raise UserError(f"--settings: not valid JSON: {error}") from error
        if not isinstance(parameters, dict):
            raise UserError("--settings: expected a JSON object of sections")
        return without_nulls(parameters)
    parameters = without_nulls(read_yaml(Path(given)))
    _require_valid(given)
    return parameters


def _require_valid(params: str) -> None:
    """Raise a UserError unless the whole of a params file is valid.

    Another process checks it: a stage depends on the code of its own settings, not on that of all.
    """
    command = [sys.executable, "-P", "-m", _COMMAND_LINE, "check", "--params", params]
    checked = subprocess.run(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    if checked.returncode:
        raise UserError(checked.stderr.strip().removeprefix("error: "))


class _Terminated(SystemExit):
    """SIGTERM, which leaves through the same clean-up as an exception does."""


def _terminated(*_: object) -> None:
    raise _Terminated(143)
