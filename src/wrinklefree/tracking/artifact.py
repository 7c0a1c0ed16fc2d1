"""Artifacts: folders with a manifest, whole or absent.

An artifact is written beside its place and renamed into it when complete; ``manifest.json`` is
written last. It says what the artifact is: files, inputs, settings, facts. How it came to be (code,
versions, time, host) is another record, see :mod:`wrinklefree.tracking.provenance`; so an edit of
the code that changes no byte changes no manifest, and both engines stop there.

Writing replaces the folder that stands in the artifact's place, so only a folder that a stage wrote
is replaced. ``.wrinklefree`` in it lists its files: an engine deletes manifests before a rerun.
"""

from __future__ import annotations

import contextlib
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
MARKER = ".wrinklefree"
MLFLOW_MODEL = "MLmodel"
"""In an artifact that MLflow loads as a model."""
SCHEMA = 3
_MARKER_TITLE = "A stage of WrinkleFree wrote these files, and may replace them:"
_MAX_MANIFEST_BYTES = 64 << 20


@dataclass(frozen=True)
class FileRecord:
    """What the manifest says of one file."""

    sha256: str
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Origin:
    """What of an artifact is known before its stage runs."""

    stage: str
    inputs: dict[str, str]
    """Digest of the manifest of each input, by its name."""
    settings: dict[str, Any]


@dataclass(frozen=True)
class Manifest(Origin):
    """What an artifact is made of and from."""

    files: dict[str, FileRecord]
    """By path relative to the folder, with forward slashes."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the stage counted and measured."""

    @property
    def digest(self) -> str:
        """Identity of the artifact: it changes when anything in the manifest does."""
        return sha256_of_json(asdict(self))


@dataclass(frozen=True)
class Artifact:
    """A folder whose files were found to be what its manifest says."""

    path: Path
    manifest: Manifest


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings or facts by their dotted names."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat.update(flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat


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
    again = f"delete {path} and rerun its stage"
    if (size := file.stat().st_size) > _MAX_MANIFEST_BYTES:
        raise UserError(f"{file}: {size} bytes, more than any stage writes; {again}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        schema, digest = content.pop("schema"), content.pop("digest", None)
        if schema != SCHEMA:
            raise UserError(f"{file}: schema {schema!r:.20}, expected {SCHEMA}; {again}")
        found = sha256_of_json(content)
        if found != digest:
            raise UserError(
                f"{file}: edited after its stage wrote it (its content has the digest"
                f" {found[:12]}…, it says {str(digest)[:12]}…); undo the edit, or {again}"
            )
        content["files"] = {name: FileRecord(**record) for name, record in content["files"].items()}
        return Manifest(**content)
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{file}: not a manifest of this version ({error!s:.200}); {again}"
        ) from error


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

    Raises
    ------
    UserError : at ``path`` stands something that no stage wrote.
    """
    check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    discard_partial(path)
    partial = path.with_name(f".{path.name}.partial")
    partial.mkdir()
    facts: dict[str, Any] = {}
    try:
        yield partial, facts
        _write_manifest(partial, origin, facts)
        check_replaceable(path)  # again: the block may have taken days
        replace_folder(path, partial)
    finally:
        discard_partial(path)


def check_replaceable(path: Path) -> None:
    """Raise a UserError unless ``path`` is absent, empty or holds what a stage wrote, no more.

    Files that someone added to an artifact count: they would be lost.
    """
    advice = "a stage replaces only what a stage wrote; move it away, or give another --output"
    if path.is_symlink():
        raise UserError(f"{path}: is a link; {advice}")
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file, expected a folder; {advice}")
    found = set(_entries(path)) - {MANIFEST, MARKER}
    if foreign := sorted(found - _written_by_a_stage(path)):
        raise UserError(
            f"{path}: holds {foreign[0]} ({len(foreign)} such files), which no stage wrote there;"
            f" {advice}"
        )


def _written_by_a_stage(folder: Path) -> set[str]:
    """Files that marker or manifest vouch for; the latter an engine may have deleted."""
    lines: list[str] = []
    with contextlib.suppress(OSError, UnicodeDecodeError):
        lines = (folder / MARKER).read_text(encoding="utf-8").splitlines()
    if lines[:1] == [_MARKER_TITLE]:
        return set(lines[1:])
    with contextlib.suppress(UserError):
        return set(read_manifest(folder).files)
    return set()


def discard_partial(path: Path) -> None:
    """Remove what a killed or failed writer left beside ``path``, putting back what it replaced."""
    shutil.rmtree(path.with_name(f".{path.name}.partial"), ignore_errors=True)
    previous = path.with_name(f".{path.name}.previous")
    if previous.exists() and not path.exists():
        previous.rename(path)
    shutil.rmtree(previous, ignore_errors=True)


def _write_manifest(folder: Path, origin: Origin, facts: dict[str, Any]) -> None:
    (folder / MARKER).write_text("\n".join([_MARKER_TITLE, *_entries(folder)]) + "\n", "utf-8")
    files = {}
    for name in _files(folder):
        file = folder / name
        _flush(file)
        files[name] = FileRecord(sha256_of_file(file), file.stat().st_size)
    manifest = asdict(Manifest(files=files, facts=facts, **asdict(origin)))
    content = json.loads(json.dumps(manifest, allow_nan=False))  # as it will be read: keys are text
    content |= {"digest": sha256_of_json(content), "schema": SCHEMA}
    text = json.dumps(content, indent=1, sort_keys=True)
    write_atomically(folder / MANIFEST, text + "\n")


def replace_folder(path: Path, partial: Path) -> None:
    """Rename ``partial`` to ``path``; after a kill in between the next writer puts back the old."""
    previous = path.with_name(f".{path.name}.previous")
    if path.exists():
        path.rename(previous)
    partial.rename(path)
    _flush(path.parent)


def _files(folder: Path) -> list[str]:
    return [name for name in _entries(folder) if name != MANIFEST and (folder / name).is_file()]


def _entries(folder: Path) -> list[str]:
    """All that lies in ``folder``, at any depth, but folders."""
    return sorted(
        entry.relative_to(folder).as_posix()
        for entry in folder.rglob("*")
        if entry.is_symlink() or not entry.is_dir()
    )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
