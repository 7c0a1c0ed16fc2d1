"""Which run of the pipeline a process belongs to, and what a person calls it."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from wrinklefree.errors import UserError
from wrinklefree.schema.load import overlay, read_yaml, without_nulls
from wrinklefree.tracking.store import project_folder

VARIABLE = "WRINKLEFREE_PIPELINE"
_EXPERIMENT = "DVC_EXP_NAME"
_ENGINES = ("snakemake", "dvc")
_KEY_LENGTH = 32
_TEXT_LENGTH = 2000


@dataclass(frozen=True)
class Commit:
    """What git says of the current folder; ``hash`` is empty where it is no repository."""

    hash: str
    dirty: bool

    def tags(self) -> dict[str, str]:
        """The tags of a run."""
        if not self.hash:
            return {}
        dirty = str(self.dirty).lower()
        return {"mlflow.source.git.commit": self.hash, "wrinklefree.git.dirty": dirty}


def pipeline_identity() -> str:
    """A name that all stages of one invocation of an engine share.

    It is the engine's own process, the outermost of this one and those above it. Snakemake hands
    it to its jobs in ``WRINKLEFREE_PIPELINE``, as they may run on other machines. A queued
    experiment of DVC has its temporary copy of the project: one worker runs many. A stage run by
    hand is its own pipeline.
    """
    if given := os.environ.get(VARIABLE):
        return given
    if project_folder() != Path.cwd():
        return f"dvc-{os.environ.get(_EXPERIMENT, 'exp')}-{Path.cwd()}"
    kind, process = _engine()
    return f"{kind}-{process.pid}-{int(process.create_time())}"


def pipeline_key(identity: str) -> str:
    """A digest of ``identity``, which may be any text, that is safe in a query."""
    return hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:_KEY_LENGTH]


def storable(text: str) -> str:
    """``text`` cut to a length that every store takes, without bytes that are no text."""
    shown = text.encode(errors="backslashreplace").decode().replace("\0", "\\0")
    return shown if len(shown) <= _TEXT_LENGTH else f"{shown[:_TEXT_LENGTH]}…"


def pipeline_name(commit: Commit) -> str:
    """Preset, experiment of DVC if any, commit and date: ``tiny · a483151 · 2026-11-24 20:15``."""
    experiment = os.environ.get(_EXPERIMENT, "")
    date = time.strftime("%Y-%m-%d %H:%M")
    return " · ".join(filter(None, [preset_name(_command()), experiment, commit.hash[:7], date]))


def pipeline_note(commit: Commit) -> str:
    """A description in Markdown: the engine's command line, the settings and the commit."""
    command = _command()
    lines = storable(shlex.join(command)).replace("\n", "\n    ")
    state = ", with uncommitted edits" if commit.dirty else ""
    code = f"commit {commit.hash}{state}" if commit.hash else "no git repository"
    return f"    {lines}\n\nSettings: {preset_name(command)}; {code}."


def preset_name(command: list[str]) -> str:
    """The presets in force.

    Those that ``--configfile`` names in the engine's command line; else those that ``params.yaml``
    holds already, so that laying them into it would change nothing; else ``params.yaml``.
    """
    names = [Path(file).stem for file in _config_files(command)]
    if not names:
        try:
            parameters = without_nulls(read_yaml(Path("params.yaml")))
            for file in sorted(Path("params").glob("*.yaml")):
                if overlay(parameters, read_yaml(file)) == parameters:
                    names.append(file.stem)
        except (UserError, OSError):
            names = []
    return "+".join(names) or "params.yaml"


def present_commit() -> Commit:
    """The commit that is checked out here."""
    commit = _git("rev-parse", "HEAD")
    return Commit(commit, bool(commit and _git("status", "--porcelain", "--untracked-files=no")))


def _config_files(command: list[str]) -> list[str]:
    """Values of Snakemake's ``--configfile``, which takes several."""
    files: list[str] = []
    collecting = False
    for word in command:
        option, equals, value = word.partition("=")
        if word.startswith("-"):
            collecting = option in ("--configfile", "--configfiles")
            files += [value] if collecting and equals else []
        elif collecting:
            files.append(word)
    return files


def _command() -> list[str]:
    """The engine's command line, without the path of the interpreter and of the program."""
    try:
        words = _engine()[1].cmdline()
    except psutil.Error:
        return []
    start = next((i for i, word in enumerate(words[:3]) if Path(word).name in _ENGINES), 0)
    return [Path(words[start]).name, *words[start + 1 :]] if words else []


def _engine() -> tuple[str, psutil.Process]:
    """The outermost process of an engine, and which; this one, a script, where there is none."""
    this = psutil.Process()
    found = ("script", this)
    for process in (this, *this.parents()):
        try:
            words = [Path(word).name for word in process.cmdline()[:3]]
        except psutil.Error:
            continue
        for engine in _ENGINES:
            if engine in words:
                found = (engine, process)
    return found


def _git(*arguments: str) -> str:
    """Output of git, empty where there is no git or no repository."""
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
