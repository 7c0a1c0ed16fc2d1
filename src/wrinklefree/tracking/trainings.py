"""The trainings that a stage has left in ``work/<stage>``, and the wish to go on from one of them.

::

    work/stage2/<key>/         one that has not finished; it goes on by itself
    work/stage2/<key>.kept/    the last checkpoint of one that has, or that another took over from
        origin.json            what the key is the digest of
        continued.json         the training that this one was told to go on from
        step-00000080/, history.jsonl
    work/stage2/continue.json  written by ``wrinklefree continue``: the next run goes on from this

Only what shapes the result is in the key: a training goes on by itself where it ends with the same
bytes. From everything else it goes on when it is asked to.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrinklefree.errors import UserError
from wrinklefree.tracking.artifact import MANIFEST, flatten
from wrinklefree.tracking.files import sha256_of_json, write_atomically

WORK = Path("work")
_ORIGIN, _CONTINUED, _REQUEST = "origin.json", "continued.json", "continue.json"
_KEPT = ".kept"
_KEY_LENGTH = 16
_OTHERS = 2
"""Trainings of a stage that are kept beside its present one."""
_CHECKPOINT = re.compile(r"step-(\d{8,})")
_LABEL = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?")


@dataclass(frozen=True)
class Training:
    """One that has a checkpoint."""

    folder: Path
    step: int
    """Step of the newest checkpoint."""

    @property
    def key(self) -> str:
        """What names it, among those of its stage."""
        return self.folder.name

    @property
    def checkpoint(self) -> Path:
        """The folder of the newest checkpoint."""
        return checkpoints_in(self.folder)[-1][1]


@dataclass(frozen=True)
class Continuation:
    """A training to go on from, and what is no longer as it was there."""

    training: Training
    changed: list[str]
    """``code``, ``inputs.model``, ``settings.stage2.steps: 100 -> 150``."""

    @property
    def event(self) -> dict[str, Any]:
        """As facts record it."""
        key = key_of(self.training.folder)
        return {"step": self.training.step, "key": key, "changed": self.changed}

    @property
    def advice(self) -> str:
        """What to do where it can't be gone on from."""
        root = self.training.folder.parent
        return (
            f"To go on from another one: wrinklefree continue {root.name} --from KEY; to start from"
            f" the beginning: delete {root / _REQUEST}"
        )

    def taken_up(self, work: Path) -> None:
        """Record in ``work``, which now has a checkpoint of its own, that the wish is fulfilled."""
        write_atomically(work / _CONTINUED, json.dumps(self.event, indent=1))
        (work.parent / _REQUEST).unlink(missing_ok=True)


def checkpoints_in(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) in order of steps; what has another name is no checkpoint."""
    if not folder.is_dir():
        return []
    named = [(_CHECKPOINT.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir()]
    return sorted((int(match.group(1)), path) for match, path in named if match)


def key_of(folder: Path) -> str:
    """The key of the training in ``folder``, finished or not."""
    return folder.name.removesuffix(_KEPT)


def begin(root: Path, made_from: dict[str, Any]) -> tuple[Path, Continuation | None, str | None]:
    """The work folder of a run of the stage whose trainings are in ``root``.

    Parameters
    ----------
    made_from : all that shapes the result: inputs, settings, code, versions of libraries.

    Returns
    -------
    The folder; what to go on from, where that was asked for; or else a line on what is not gone
    on from, where there is something.

    Raises
    ------
    UserError : it was asked to go on from a training that is gone.
    """
    work = root / sha256_of_json(made_from)[:_KEY_LENGTH]
    wanted = None
    if (root / _REQUEST).is_file():
        request = _read(root / _REQUEST) or {}
        wanted = _find(root, str(request.get("key")))
    if wanted and wanted.folder == work:
        (root / _REQUEST).unlink()  # it does so anyway
        wanted = None
    elif wanted and checkpoints_in(work):
        if wanted.key == work.name + _KEPT:
            shutil.rmtree(work)  # the same training, not the one that was asked for
        else:
            _retire(work)
    write_atomically(work / _ORIGIN, json.dumps(made_from))
    if wanted:
        return work, Continuation(wanted, _changes(wanted, made_from)), None
    others = [] if checkpoints_in(work) else trainings(root)
    return work, None, _passed_by(others[0], made_from) if others else None


def is_asked_to_continue(root: Path) -> bool:
    """Whether the next run of the stage is to go on from a training of before."""
    return (root / _REQUEST).is_file()


def continued_from(work: Path) -> dict[str, Any] | None:
    """The event of the training in ``work`` having gone on from another one, if it has."""
    return _read(work / _CONTINUED)


def finish(work: Path) -> None:
    """Keep the last checkpoint of the training in ``work``, and of some before it; no more."""
    root = work.parent
    if checkpoints_in(work):
        work = _retire(work)
    for folder in [path for path in root.iterdir() if path.is_dir() and not checkpoints_in(path)]:
        shutil.rmtree(folder)
    others = [training for training in trainings(root) if training.folder != work]
    for old in others[_OTHERS:]:
        shutil.rmtree(old.folder)
    if not any(root.iterdir()):
        root.rmdir()


def trainings(root: Path) -> list[Training]:
    """Those with a checkpoint, the newest first."""
    if not root.is_dir():
        return []
    found = [(checkpoints_in(folder), folder) for folder in root.iterdir() if folder.is_dir()]
    dated = [
        ((steps[-1][1] / MANIFEST).stat().st_mtime_ns, Training(folder, steps[-1][0]))
        for steps, folder in found
        if steps and (steps[-1][1] / MANIFEST).is_file()
    ]
    return [training for _, training in sorted(dated, key=lambda one: one[0], reverse=True)]


def ask_to_continue(label: str, key: str | None = None) -> Training:
    """Have the next run of a stage go on from a training of before, the newest unless ``key`` says.

    Raises
    ------
    UserError : there is none, or none of this key.
    """
    root = WORK / label
    is_label = _LABEL.fullmatch(label)
    found = trainings(root) if is_label else []
    if not found:
        parts = [part for work in root.glob("*") for part in trainings(work)] if is_label else []
        if parts:
            stopped = ", ".join(f"{part.folder} (step {part.step})" for part in parts)
            raise UserError(
                f"{label} trains several models, and goes on by itself where nothing differs; it"
                f" can't be told to go on where something does. It was stopped in: {stopped}"
            )
        stages = sorted(folder.name for folder in WORK.glob("*") if trainings(folder))
        raise UserError(
            f"{label}: no checkpoint of this stage is kept; there are of:"
            f" {', '.join(stages) or 'none'}"
        )
    wanted = _find(root, key) if key else found[0]
    write_atomically(root / _REQUEST, json.dumps({"key": wanted.key}))
    return wanted


def _find(root: Path, key: str) -> Training:
    found = trainings(root)
    for training in found:
        if training.key == key:
            return training
    known = ", ".join(f"{one.key} (step {one.step})" for one in found) or "none"
    raise UserError(
        f"{root}: no training {key} is kept to go on from; there are: {known}. Ask for one of them"
        f" by wrinklefree continue {root.name} --from KEY, or delete {root / _REQUEST}"
    )


def _retire(work: Path) -> Path:
    """Keep of a training what going on from it takes, out of the way of the next one."""
    kept = work.with_name(work.name + _KEPT)
    wanted = {_ORIGIN, _CONTINUED, "history.jsonl", checkpoints_in(work)[-1][1].name}
    for path in work.iterdir():
        if path.name in wanted:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    shutil.rmtree(kept, ignore_errors=True)
    work.rename(kept)
    return kept


def _passed_by(training: Training, made_from: dict[str, Any]) -> str:
    changed = ", ".join(_changes(training, made_from)) or "nothing: it had finished"
    label = training.folder.parent.name
    return (
        f"{label}: starts from its beginning; a run of before is kept at step {training.step}, from"
        f" which differs: {changed}. wrinklefree continue {label} --from {training.key} makes the"
        " next run go on from there"
    )


def _changes(training: Training, made_from: dict[str, Any]) -> list[str]:
    before = _read(training.folder / _ORIGIN)
    if before is None:
        return ["unknown"]
    one, other = flatten(before), flatten(made_from)
    changed = []
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) == other.get(name):
            continue
        short = name.removeprefix("settings.")
        told = f"{short}: {_told(one, name)} -> {_told(other, name)}"
        changed.append(told if short != name else name)  # of digests the name says enough
    return changed


def _told(values: dict[str, Any], name: str) -> str:
    return json.dumps(values[name]) if name in values else "absent"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
