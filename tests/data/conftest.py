"""Small artifacts for the data tests: wheels, fetched folders, tokenizers, token folders."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wrinklefree.schema.splits import SPLITS
from wrinklefree.text.documents import DOCUMENTS_FILE, SCHEMA
from wrinklefree.text.generators.mathematics import document
from wrinklefree.tokens.settings import BpeTokenizerSettings
from wrinklefree.tokens.tokenizer import end_of_text_id, vocabulary_size
from wrinklefree.tokens.train_bpe import train_tokenizer
from wrinklefree.tracking.files import sha256_of_file


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only place for packages."""
    folder = tmp_path / "links"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def make_sdist(links: Path) -> Callable[..., tuple[Path, str]]:
    """Builds demo_text 1.0 as demo_text-1.0.tar.gz in pip's only place; (path, sha256).

    Members are bytes, or what changes the header of a member without content.
    """

    def make(members: dict[str, bytes | Callable[[tarfile.TarInfo], None]]) -> tuple[Path, str]:
        path = links / "demo_text-1.0.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                if isinstance(content, bytes):
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
                else:
                    content(info)
                    archive.addfile(info)
        return path, sha256_of_file(path)

    return make


@pytest.fixture
def make_wheel(links: Path) -> Callable[[dict[str, bytes]], tuple[Path, str]]:
    """Builds demo_text 1.0 as a wheel in pip's only place; (path, sha256)."""

    def make(members: dict[str, bytes]) -> tuple[Path, str]:
        path = links / "demo_text-1.0-py3-none-any.whl"
        information = "demo_text-1.0.dist-info"
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
            metadata = b"Metadata-Version: 2.1\nName: demo-text\nVersion: 1.0\n"
            archive.writestr(f"{information}/METADATA", metadata)
            archive.writestr(f"{information}/WHEEL", b"Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr(f"{information}/RECORD", b"")
        return path, sha256_of_file(path)

    return make


def write_raw(
    folder: Path, domain: str, texts: dict[str, list[str]], row_group_size: int | None = None
) -> Path:
    """A fetched folder with ``texts`` by split."""
    folder.mkdir(parents=True)
    records = [
        {"id": f"{split}{n}", "text": text, "domain": domain, "split": split}
        for split in SPLITS
        for n, text in enumerate(texts.get(split, []))
    ]
    table = pa.Table.from_pylist(records, schema=SCHEMA)
    pq.write_table(table, folder / DOCUMENTS_FILE, row_group_size=row_group_size)
    return folder


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a fetched folder: raw(domain, {split: texts})."""

    def make(domain: str, texts: dict[str, list[str]], row_group_size: int | None = None) -> Path:
        return write_raw(tmp_path_factory.mktemp("raw") / domain, domain, texts, row_group_size)

    return make


@pytest.fixture(scope="session")
def tokenizer_folder(raw: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 320 ids."""
    folder = tmp_path_factory.mktemp("tokenizer")
    text = raw("maths", {"train": [document(5, n) for n in range(40)]})
    settings = BpeTokenizerSettings(kind="bpe", vocabulary_size=320, max_megabytes_per_source=1)
    train_tokenizer(settings, {"maths": text}, folder)
    return folder


@pytest.fixture
def token_folder(
    tokenizer_folder: Path,
    write_tokens: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """Writes a token folder: token_folder(domain, {split: documents of token ids})."""
    assert end_of_text_id(tokenizer_folder) == 0

    def make(domain: str, documents: dict[str, list[list[int]]]) -> Path:
        folder = tmp_path_factory.mktemp(domain)
        return write_tokens(folder, domain, documents, vocabulary_size(tokenizer_folder))

    return make
