"""The tokenizer that comes with a base model."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from wrinklefree.downloads.base_files import (
    explained,
    gguf_file,
    gguf_name,
    pinned_folder,
    repository_of,
)
from wrinklefree.downloads.settings import (
    BaseSource,
    FolderBaseSettings,
    GgufBaseSettings,
    HubBaseSettings,
)
from wrinklefree.errors import UserError
from wrinklefree.tokens.tokenizer import TOKENIZER_FILE, read_tokenizer, require_end_of_text


def tokenizer_of_base(settings: BaseSource, folder: Path, cache: Path) -> None:
    """Write the base model's own tokenizer into ``folder``, as ``tokenizer.json`` and company."""
    if isinstance(settings, HubBaseSettings):
        where = f"base.source.repository {settings.repository} at {settings.revision}"
        with explained(where, "a tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(
                repository_of(settings), revision=settings.revision, trust_remote_code=False
            )
    elif isinstance(settings, FolderBaseSettings):
        path = pinned_folder(settings)
        where = f"base.source.path {path}"
        if (path / TOKENIZER_FILE).is_file():
            read_tokenizer(path)  # whose errors name the file
        with explained(where, "a tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
    elif isinstance(settings, GgufBaseSettings):
        where = gguf_name(settings)
        with gguf_file(settings, cache) as path, explained(where, "a tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    else:
        raise UserError(
            f"tokenizer.kind is base, but base.source.kind {settings.kind} has no tokenizer"
        )
    _save_tokenizer(tokenizer, folder, where)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, where: str) -> None:
    if not tokenizer.is_fast:
        raise UserError(
            f"{where}: {type(tokenizer).__name__} has no fast version ({TOKENIZER_FILE});"
            " use a base whose tokenizer has one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    require_end_of_text(read_tokenizer(folder), tokenizer.eos_token, where)
