"""One sentence for an archive that is broken. Apart from the sources, which few stages need."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wrinklefree.errors import UserError
from wrinklefree.tracking.files import is_disk_full

_BROKEN = (
    zipfile.BadZipFile,
    NotImplementedError,  # zipfile's for a compression that it doesn't know
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
)


@contextmanager
def readable_archive(path: Path, member: str | None = None) -> Iterator[None]:
    """Around the reading of an archive, or of one member: that it is broken becomes a UserError."""
    try:
        yield
    except _BROKEN as error:
        if is_disk_full(error):
            raise
        what = (
            f"{member} in {path} can't be read" if member else f"{path} is not a readable archive"
        )
        raise UserError(
            f"{what} ({error or type(error).__name__}). Delete {path} and run again, which fetches"
            " it anew; its sha256 was the one in the settings, so that if it fails again the"
            " published file itself is broken: use another version"
        ) from error
