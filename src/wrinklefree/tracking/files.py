"""Digests, and files that are whole or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FOREIGN_ERROR = re.compile(r"os error (\d+)")


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file that is either the old one or the whole new one, whenever the process dies."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether ``error`` comes from a full disk, a quota or a limit on file size.

    Libraries that write by themselves raise types of their own: the system's error number stands in
    the message of safetensors, and in the chain of errors of ``torch.save``.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return True
        foreign = _FOREIGN_ERROR.search(str(error))
        if foreign and int(foreign.group(1)) in _NO_SPACE:
            return True
        error = error.__cause__ or error.__context__
    return False


def explain_system_error(error: BaseException, written: str) -> str | None:
    """What a user can do about an error of the file system; None where it is no such error.

    ``written`` is what the process writes.
    """
    if is_disk_full(error):
        return (
            f"no space left while writing {written}; nothing half-written is left. Free some space"
            " and run again"
        )
    if not isinstance(error, OSError) or not isinstance(error.filename, str | bytes):
        return None
    place = f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, PermissionError):
        return f"{place}; run as a user who may read and write there, or mend the permissions"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{place}; it, or a part of its path, is a file and must be a folder: move it away"
    if error.errno == errno.EROFS:
        return f"{place}; run where the project can be written"
    return None
