"""A second copy of every finished artifact, for when a rerun fails or is cancelled.

Both engines delete the outputs of a stage before they start it. The copy in ``work/kept`` is made
of hard links: it takes no space as long as the artifact stands. Only the newest is kept.
"""

from __future__ import annotations

from pathlib import Path

from wrinklefree.errors import UserError
from wrinklefree.tracking.artifact import (
    MANIFEST,
    check_replaceable,
    discard_partial,
    open_artifact,
    read_manifest,
    replace_folder,
)

KEPT = Path("work/kept")


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
    return kept.manifest.stage


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
