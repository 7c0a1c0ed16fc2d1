"""Files inside a wheel or a source distribution: read as streams, never extracted or executed."""

from __future__ import annotations

import stat
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self, cast

from wrinklefree.errors import UserError
from wrinklefree.text.sources.decompress import decompressed

_NAMED = 3
_END_OF_TAR = (tarfile.EOFHeaderError, tarfile.EmptyHeaderError)  # pyright: ignore[reportAttributeAccessIssue]


class Member(NamedTuple):
    """One file of an archive."""

    name: str
    stream: BinaryIO
    """To be read before the next member is asked for."""


class _WholeTarInfo(tarfile.TarInfo):
    """A member whose header is damaged is an error; tarfile takes it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The next member of ``archive``."""
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if isinstance(error, _END_OF_TAR):
                raise
            raise tarfile.ReadError(f"header of a member: {error}") from error


class SpecialMemberWarning(UserWarning):
    """A link or device in an archive was passed over."""


def read_members(path: Path, selects: Callable[[str], bool]) -> Iterator[Member]:
    """The files of a zip or tar archive whose names ``selects`` accepts.

    A zip's come in the order of their names, a tar's in its own, since it is read once from front
    to end. Links and devices are passed over with a warning: what they name may lie anywhere.
    Raises UserError for a name that occurs twice and if nothing is selected. What a broken archive
    raises, ``readable_archive`` around the whole reading turns into a UserError.
    """
    is_zip = zipfile.is_zipfile(path)
    if not is_zip and not tarfile.is_tarfile(path):
        raise tarfile.ReadError("neither a zip nor a tar archive")
    members = _zip_members(path, selects) if is_zip else _tar_members(path, selects)
    seen: set[str] = set()
    others: list[str] = []
    special: list[str] = []
    for name, stream in members:
        if not selects(name):
            others.append(name)
        elif stream is None:
            special.append(name)
        elif name in seen:
            raise UserError(f"{path.name} has two files {name}; leave them out by exclude")
        else:
            seen.add(name)
            yield Member(name, stream)
    if special:
        warnings.warn(
            f"{path.name}: {len(special)} links or devices passed over, such as {special[:_NAMED]}",
            SpecialMemberWarning,
            stacklevel=2,
        )
    if not seen:
        raise UserError(
            f"no file in {path.name} is selected by include without exclude; it has"
            f" {len(others)} others, such as {sorted(others)[:_NAMED]}"
        )


def _zip_members(
    path: Path, selects: Callable[[str], bool]
) -> Iterator[tuple[str, BinaryIO | None]]:
    """(name, its stream if it is selected and a plain file) of every file, in order of names."""
    with zipfile.ZipFile(path) as archive:
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            if info.is_dir():
                continue
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG) or not selects(info.filename):
                yield info.filename, None
                continue
            if info.flag_bits & 1:
                raise zipfile.BadZipFile(f"{info.filename} is encrypted")
            with archive.open(info) as stream:
                yield info.filename, cast(BinaryIO, stream)


def _tar_members(
    path: Path, selects: Callable[[str], bool]
) -> Iterator[tuple[str, BinaryIO | None]]:
    """The same for a tar archive, in its order."""
    # tarfile takes a gzip cut between two members for the end of the archive.
    with (
        path.open("rb") as file,
        decompressed(file, path.name) as stream,
        tarfile.open(fileobj=stream, mode="r|*", tarinfo=_WholeTarInfo) as archive,
    ):
        for info in archive:
            if not info.isdir():
                wanted = info.isreg() and selects(info.name)
                content = archive.extractfile(info) if wanted else None
                yield info.name, cast("BinaryIO | None", content)
