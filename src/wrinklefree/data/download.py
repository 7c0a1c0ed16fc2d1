"""Wheels of a package registry, checked by hash and kept in a cache; never executed."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from wrinklefree.errors import UserError
from wrinklefree.tracking.files import sha256_of_file

_GOT = re.compile(r"Got\s+([0-9a-f]{64})")
_LAST_LINES = 6


def download_wheel(package: str, version: str, sha256: str, cache: Path) -> Path:
    """Path of the wheel of ``package`` at ``version`` whose sha256 is ``sha256``.

    Kept as ``<cache>/<sha256>/<file name>``. A cached file is hashed again, and fetched again if it
    has changed. pip takes indexes, proxies and certificates from its own configuration; it only
    downloads (no dependencies, no source distributions, so no code of the package runs).

    Raises UserError if the hash differs or pip finds no such wheel.
    """
    folder = cache / sha256
    for path in sorted(folder.glob("*.whl")):
        if sha256_of_file(path) == sha256:
            return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as temporary:
        path = _pip_download(package, version, sha256, Path(temporary))
        found = sha256_of_file(path)
        if found != sha256:
            raise _hash_error(package, version, sha256, found)
        folder.mkdir(exist_ok=True)
        path.replace(folder / path.name)
    return folder / path.name


def _pip_download(package: str, version: str, sha256: str, folder: Path) -> Path:
    """Run pip in hash-checking mode; the one wheel it left in ``folder``/wheels."""
    requirements, wheels = folder / "requirements.txt", folder / "wheels"
    requirements.write_text(f"{package}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--require-hashes"]
    quiet = ["--disable-pip-version-check", "--no-input", "--progress-bar=off"]
    paths = ["--requirement", str(requirements), "--dest", str(wheels)]
    result = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, *quiet, *paths],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if result.returncode != 0:
        if got := _GOT.search(result.stdout):
            raise _hash_error(package, version, sha256, got.group(1))
        last = "\n".join(f"  {line}" for line in result.stdout.strip().splitlines()[-_LAST_LINES:])
        raise UserError(
            f"could not download {package}=={version}; pip's last lines:\n{last}\n"
            "Check the name, the version and the connection to a package registry"
            " (pip config list), or put the wheel in a folder named by PIP_FIND_LINKS"
        )
    found = sorted(wheels.glob("*.whl"))
    assert len(found) == 1, f"pip --no-deps left {len(found)} wheels"
    return found[0]


def _hash_error(package: str, version: str, expected: str, found: str) -> UserError:
    return UserError(
        f"the wheel of {package}=={version} has sha256 {found}, expected {expected}."
        " Another file is being served under this name: if the settings are wrong, correct sha256"
        " in params.yaml; if they are right, do not use this file"
    )
