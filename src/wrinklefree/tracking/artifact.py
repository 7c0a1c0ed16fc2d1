"""Artifacts: folders with a manifest, whole or absent.

An artifact is written beside its place and renamed into it when complete; ``manifest.json`` is
written last. It is a function of (settings, inputs, code, library versions) alone: no time, host or
run id is in it, so that repeating a stage repeats the bytes and both engines see that nothing
changed. The MLflow run that made it carries the manifest's digest as a tag.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wrinklefree.errors import UserError
from wrinklefree.tracking.files import sha256_of_file, sha256_of_json, write_atomically

MANIFEST = "manifest.json"
SCHEMA = 1


@dataclass(frozen=True)
class FileRecord:
    """What the manifest says of one file."""

    sha256: str
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Origin:
    """All that determines an artifact before its stage runs."""

    stage: str
    inputs: dict[str, str]
    """Digest of the manifest of each input, by its name."""
    settings: dict[str, Any]
    code: str
    """Digest of the stage's script and every module of this project that it imports."""
    versions: dict[str, str]


@dataclass(frozen=True)
class Manifest(Origin):
    """What an artifact is made of and from."""

    files: dict[str, FileRecord]
    """By path relative to the folder, with forward slashes."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the stage counted and measured."""
    schema: int = SCHEMA

    @property
    def digest(self) -> str:
        """Identity of the artifact: it changes when anything in the manifest does."""
        return sha256_of_json(asdict(self))


@dataclass(frozen=True)
class Artifact:
    """A folder whose files were found to be what its manifest says."""

    path: Path
    manifest: Manifest


def read_manifest(path: Path) -> Manifest:
    """The manifest of the artifact in folder ``path``, its files unchecked.

    Raises
    ------
    UserError : there is no readable manifest.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise UserError(
            f"{path}: not a finished artifact ({MANIFEST} is missing); run the stage that makes it"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        content["files"] = {name: FileRecord(**record) for name, record in content["files"].items()}
        manifest = Manifest(**content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{file}: not a manifest of this version ({error}); delete {path} and rerun its stage"
        ) from error
    if manifest.schema != SCHEMA:
        raise UserError(f"{file}: schema {manifest.schema}, expected {SCHEMA}; rerun its stage")
    return manifest


def open_artifact(path: Path) -> Artifact:
    """The artifact in folder ``path``, each file checked against its recorded size and SHA-256.

    Raises
    ------
    UserError : a file is missing, truncated, edited or not in the manifest.
    """
    manifest = read_manifest(path)
    present = set(_files(path))
    for name, record in manifest.files.items():
        file = path / name
        advice = f"delete {path} and rerun stage {manifest.stage}"
        if name not in present:
            raise UserError(f"{file}: listed in {MANIFEST} but missing; {advice}")
        size = file.stat().st_size
        if size != record.size:
            raise UserError(f"{file}: {size} bytes, expected {record.size}; {advice}")
        found = sha256_of_file(file)
        if found != record.sha256:
            raise UserError(
                f"{file}: content differs from its manifest (sha256 {found[:12]}…,"
                f" expected {record.sha256[:12]}…); {advice}"
            )
    if extra := sorted(present - set(manifest.files)):
        raise UserError(f"{path / extra[0]}: not in {MANIFEST}; move it out of the artifact")
    return Artifact(path, manifest)


@contextmanager
def writing_artifact(path: Path, origin: Origin) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A new folder to write into, and a dict of facts; on success they become the artifact.

    When the block raises, nothing of it is left and what stood at ``path`` before still stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    discard_partial(path)
    partial = path.with_name(f".{path.name}.partial")
    partial.mkdir()
    facts: dict[str, Any] = {}
    try:
        yield partial, facts
        _write_manifest(partial, origin, facts)
        _replace_folder(path, partial)
    finally:
        discard_partial(path)


def discard_partial(path: Path) -> None:
    """Remove what a killed or failed writer left beside ``path``, putting back what it replaced."""
    shutil.rmtree(path.with_name(f".{path.name}.partial"), ignore_errors=True)
    previous = path.with_name(f".{path.name}.previous")
    if previous.exists() and not path.exists():
        previous.rename(path)
    shutil.rmtree(previous, ignore_errors=True)


def _write_manifest(folder: Path, origin: Origin, facts: dict[str, Any]) -> None:
    files = {}
    for name in _files(folder):
        file = folder / name
        _flush(file)
        files[name] = FileRecord(sha256_of_file(file), file.stat().st_size)
    manifest = Manifest(files=files, facts=facts, **asdict(origin))
    content = json.dumps(asdict(manifest), indent=1, sort_keys=True, allow_nan=False)
    write_atomically(folder / MANIFEST, content + "\n")


def _replace_folder(path: Path, partial: Path) -> None:
    """Rename ``partial`` to ``path``; after a kill in between the next writer puts back the old."""
    previous = path.with_name(f".{path.name}.previous")
    if path.exists():
        path.rename(previous)
    partial.rename(path)
    _flush(path.parent)


def _files(folder: Path) -> list[str]:
    return sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and file.relative_to(folder).as_posix() != MANIFEST
    )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
