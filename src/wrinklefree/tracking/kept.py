"""A second copy of every finished artifact, for when a rerun fails, is cancelled or not needed.

Both engines delete the outputs of a stage before they start it. The copy in ``work/kept`` is made
of hard links: it takes no space as long as the artifact stands. Only the newest is kept.

Both engines start more than must be computed: Snakemake all that is below a stage, even if that
changed no byte; DVC what depends on an edited folder or section, whether or not the edit has an
effect. Such a stage finds the copy made of the same inputs, settings and code, and puts it back. A
stage that was asked for by name, by ``--force`` or by hand runs in any case.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path

import psutil

from wrinklefree.errors import UserError
from wrinklefree.tracking.artifact import (
    MANIFEST,
    Origin,
    check_replaceable,
    discard_partial,
    open_artifact,
    read_manifest,
    replace_folder,
)
from wrinklefree.tracking.files import write_atomically
from wrinklefree.tracking.locks import LOCKS, exclusive_lock
from wrinklefree.tracking.provenance import read_provenance, record_of

KEPT = Path("work/kept")
FORCED = "WRINKLEFREE_FORCED"
IN_DVC = "DVC_STAGE"
"""The variable in which DVC tells a stage its name."""


def keep(path: Path) -> str | None:
    """Keep the artifact at ``path`` in place of the one kept before.

    Returns
    -------
    Why there is no copy, or None.
    """
    place = _place(path)
    if place is None:
        return f"{path} lies outside of this folder"
    try:
        _link(path, place)
    except OSError as error:  # another file system, or one without hard links
        return f"{path} cannot be linked into {place}: {error.strerror}"
    _copy(record_of(path), _record(path))
    return None


def restore(path: Path) -> str:
    """Put the kept copy back to ``path``; returns the stage that made it.

    Raises
    ------
    UserError : there is no copy or it is damaged, or something else stands at ``path``.
    """
    place = _place(path)
    if place is None or not (place / MANIFEST).is_file():
        known = ", ".join(map(str, kept_artifacts())) or "none"
        raise UserError(f"{path}: no copy is kept of it; copies are kept of: {known}")
    kept = open_artifact(place)
    if (path / MANIFEST).is_file():
        if read_manifest(path).digest != kept.manifest.digest:
            raise UserError(
                f"{path}: another artifact stands there than the one that is kept; move it away"
            )
        open_artifact(path)  # says what is damaged
        raise UserError(f"{path}: nothing to restore; it stands there, whole")
    check_replaceable(path)
    _link(place, path)
    _copy(_record(path), record_of(path))
    return kept.manifest.stage


def restore_alone(path: Path) -> str:
    """:func:`restore`, while the stage that makes ``path`` is kept from running.

    Raises
    ------
    UserError : it runs, or what ``restore`` raises.
    """
    place = _place(path)
    with contextlib.ExitStack() as held:
        if place is not None and (place / MANIFEST).is_file():
            stage = read_manifest(place).stage
            for label in (stage, f"{stage}.{path.name}"):  # of a stage with several instances
                busy = f"{path}: {label} is running"
                held.enter_context(exclusive_lock(LOCKS / f"{label}.lock", busy=busy))
        return restore(path)


def made_already(output: Path, origin: Origin, code: str, versions: dict[str, str]) -> bool:
    """Whether the kept copy of ``output`` is what a stage would make."""
    if not has_copy(output):
        return False
    place = _place(output)
    assert place is not None
    try:
        manifest = read_manifest(place)
        record = read_provenance(_record(output), manifest.digest)
    except UserError:  # the stage will make another
        return False
    same = (manifest.stage, manifest.inputs, manifest.settings) == (
        origin.stage,
        origin.inputs,
        json.loads(json.dumps(origin.settings)),
    )
    return same and record is not None and (record.code, record.versions) == (code, versions)


def is_forced(stage: str, output: Path) -> bool:
    """Whether the stage must run though the kept copy is what it would make.

    Snakemake names the rules and files that were forced in ``WRINKLEFREE_FORCED``, DVC was called
    with ``--force``, and who runs the script by hand wants it to run.
    """
    forced = os.environ.get(FORCED)
    if forced is None:
        return IN_DVC not in os.environ or _dvc_was_forced()
    names = {stage, f"{stage}_source", f"{stage}_student", f"{output.as_posix()}/{MANIFEST}"}
    return not names.isdisjoint(forced.split())


def _dvc_was_forced() -> bool:
    """Whether a process above this one is a forced DVC, which tells its stages nothing of it."""
    for process in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            if is_forced_dvc(process.cmdline()):
                return True
    return False


def is_forced_dvc(command: list[str]) -> bool:
    """Whether a command line is that of a DVC that was told to run what has not changed."""
    names = [Path(word).name for word in command[:3]]
    if "dvc" not in names[:2] and names[1:] != ["-m", "dvc"]:
        return False
    return any(re.fullmatch("--force.*|-[a-zA-Z]*f[a-zA-Z]*", word) for word in command)


def is_kept(path: Path) -> bool:
    """Whether the kept copy has the content of the artifact at ``path``."""
    place = _place(path)
    if place is None or not (place / MANIFEST).is_file():
        return False
    return (place / MANIFEST).read_bytes() == (path / MANIFEST).read_bytes()


def has_copy(path: Path) -> bool:
    """Whether :func:`restore` could put back what stood at ``path`` and is gone."""
    place = _place(path)
    return place is not None and (place / MANIFEST).is_file() and not (path / MANIFEST).is_file()


def kept_artifacts() -> list[Path]:
    """The places of all artifacts of which a copy is kept, sorted."""
    folders = (file.parent.relative_to(KEPT) for file in KEPT.rglob(MANIFEST))
    return sorted(folder for folder in folders if not folder.name.startswith("."))


def _place(path: Path) -> Path | None:
    """Where the copy of ``path`` lies; None if ``path`` is not below the current folder."""
    place, here = path.resolve(), Path.cwd().resolve()
    return KEPT / place.relative_to(here) if place.is_relative_to(here) else None


def _record(path: Path) -> Path | None:
    """Where the kept copy's record of provenance lies."""
    record = record_of(path)
    return KEPT / record if record else None


def _copy(source: Path | None, target: Path | None) -> None:
    if source and target and source.is_file():
        write_atomically(target, source.read_bytes())


def _link(source: Path, target: Path) -> None:
    """Make ``target`` a folder of hard links to an artifact's files, or leave it as it was."""
    target.parent.mkdir(parents=True, exist_ok=True)
    discard_partial(target)
    partial = target.with_name(f".{target.name}.partial")
    try:
        for name in (*read_manifest(source).files, MANIFEST):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).hardlink_to(source / name)
        replace_folder(target, partial)
    finally:
        discard_partial(target)
