"""Shared by all tests: no network by accident, no telemetry, a small model, stages, token folders.

The fixtures import torch themselves: most tests of settings and tracking need none.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of several workers wait for each other, and these models are too small to gain by any.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

VOCABULARY = 40
SHARE_OF_EXHAUSTIVE = 12
"""One in so many of the exhaustive tests is run by ``make test``; the commit chooses which."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="run all of the exhaustive tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep a share of the exhaustive tests, but all where a test is named; long files first."""
    long = {item.path for item in items if item.get_closest_marker("end_to_end")}
    items.sort(key=lambda item: item.path not in long)  # or a worker would wait for the last one
    if config.getoption("exhaustive") or any("::" in argument for argument in config.args):
        return
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    left_out = [
        item
        for item in items
        if item.get_closest_marker("exhaustive") and not _is_chosen(item.nodeid, commit)
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _is_chosen(nodeid: str, commit: str) -> bool:
    digest = hashlib.sha256(f"{commit} {nodeid}".encode()).digest()
    return digest[0] % SHARE_OF_EXHAUSTIVE == 0


@pytest.fixture(autouse=True)
def _seeded():
    """What a test draws does not depend on the tests that ran before it in the same worker."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture
def tiny_model():
    """Builds a float64 Llama of two layers with grouped queries and random norms, by seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def build(seed=0):
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            attn_implementation="sdpa",
        )
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, 0.2) if parameter.ndim == 2 else parameter.normal_(1.0, 0.1)
        return model

    return build


@pytest.fixture
def pack():
    """Rows given as lists of piece lengths; the tail is padding."""
    import torch

    from wrinklefree.mixture.batch import Batch

    def build(rows, length, seed=0):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, VOCABULARY - 1, (len(rows), length), generator=generator)
        documents = torch.full((len(rows), length), -1)
        positions = torch.zeros((len(rows), length), dtype=torch.int64)
        for row, pieces in enumerate(rows):
            start = 0
            for document, size in enumerate(pieces):
                documents[row, start : start + size] = document
                positions[row, start : start + size] = torch.arange(size)
                start += size
        rows_B = torch.arange(len(rows))
        return Batch(
            tokens_BT=tokens,
            document_ids_BT=documents,
            positions_BT=positions,
            source_documents_BT=documents,
            source_positions_BT=positions.where(documents >= 0, -1),
            domain_B=torch.zeros_like(rows_B),
            sample_B=rows_B + 1000,
        )

    return build


@pytest.fixture
def new_stage():
    """Builds a stage with a folder and a work folder below ``root``.

    Its run stands in for that of MLflow: ``metrics`` keeps what is logged as (step, metrics).
    """
    from wrinklefree.tracking.runs import StageRun
    from wrinklefree.tracking.stage import Stage
    from wrinklefree.tracking.terminal import Terminal

    class Kept:
        id = ""

        def __init__(self) -> None:
            self.metrics: list[tuple[int, dict[str, float]]] = []

        def log_metrics(self, step: int, metrics: dict[str, float]) -> None:
            self.metrics.append((step, metrics))

    def build(
        root: Path,
        name: str,
        instance: str | None = None,
        *,
        settings: dict[str, Any],
        inputs: dict[str, Path] | None = None,
        work: Path | None = None,
    ) -> Stage:
        (root / "folder").mkdir(parents=True, exist_ok=True)
        return Stage(
            name=name,
            instance=instance,
            settings=settings,
            inputs=inputs or {},
            folder=root / "folder",
            work=work or root / "work",
            run=cast(StageRun, Kept()),
            terminal=Terminal(f"{name}.{instance}" if instance else name),
        )

    return build


@pytest.fixture(scope="session")
def write_tokens() -> Callable[..., Path]:
    """Fills a token folder, one shard per split, with documents of token ids; returns it."""
    from wrinklefree.schema.splits import SPLITS
    from wrinklefree.tokens.shards import ShardWriter, write_token_index

    def write(
        folder: Path, domain: str, documents: dict[str, list[list[int]]], vocabulary_size: int
    ) -> Path:
        ids = {"vocabulary_size": vocabulary_size, "end_of_text_id": 0}
        counts = {}
        for split in SPLITS:
            writer = ShardWriter(folder, split, 0, **ids)
            writer.append(documents.get(split, []))
            counts[split] = [writer.close()]
        write_token_index(folder, domain=domain, splits=counts, **ids)
        return folder

    return write


@pytest.fixture(scope="session")
def save_tokenizer() -> Callable[[Path, list[str]], None]:
    """Saves a byte-level BPE of 300 ids, those of the special tokens first (the end of text)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    def save(folder: Path, special_tokens: list[str]) -> None:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=special_tokens,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        text = "the population of the city is small and the code defines a function that returns it"
        tokenizer.train_from_iterator([text] * 5, trainer)
        assert tokenizer.get_vocab_size() == 300
        tokenizer.save(str(folder / "tokenizer.json"))
        end = {"eos_token": special_tokens[0]}
        (folder / "tokenizer_config.json").write_text(json.dumps(end))

    return save


@pytest.fixture(scope="session")
def tokenizer(
    save_tokenizer: Callable[[Path, list[str]], None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with such a tokenizer, whose one special token is the end of text."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, ["<|endoftext|>"])
    return folder


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

    from wrinklefree.tracking.files import sha256_of_file

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

    from wrinklefree.tracking.files import sha256_of_file

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
    import pyarrow as pa
    import pyarrow.parquet as pq

    from wrinklefree.schema.splits import SPLITS
    from wrinklefree.text.documents.parquet import DOCUMENTS_FILE, SCHEMA

    folder.mkdir(parents=True)
    # One of each split in turn, as cleaning leaves them in no order of splits.
    numbered = [
        (n / max(len(texts[split]), 1), split, n, text)
        for split in SPLITS
        for n, text in enumerate(texts.get(split, []))
    ]
    records = [
        {"id": f"{split}{n}", "text": text, "domain": domain, "split": split}
        for _, split, n, text in sorted(numbered)
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
    from wrinklefree.text.generators.mathematics import document
    from wrinklefree.tokens.settings import BpeTokenizerSettings
    from wrinklefree.tokens.train_bpe import train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    text = raw("maths", {"train": [document(5, n) for n in range(40)]})
    settings = BpeTokenizerSettings(kind="bpe", vocabulary_size=320, max_megabytes_per_source=1)
    train_tokenizer(settings, {"maths": text}, folder)
    return folder


@pytest.fixture(scope="session")
def begin_texts() -> Callable[[Path, str], int]:
    """Makes a folder's tokenizer begin every text with one of its tokens, as that of Llama 3 does;
    its id."""
    from tokenizers import Tokenizer, processors

    def begin(folder: Path, token: str) -> int:
        file = str(folder / "tokenizer.json")
        tokenizer = Tokenizer.from_file(file)
        number = tokenizer.token_to_id(token)
        assert number is not None
        template = processors.TemplateProcessing(
            single=f"{token} $A", special_tokens=[(token, number)]
        )
        before = [one] if (one := tokenizer.post_processor) else []
        tokenizer.post_processor = processors.Sequence([*before, template])
        tokenizer.save(file)
        return number

    return begin


@pytest.fixture
def beginning_folder(
    tokenizer_folder: Path, begin_texts: Callable[[Path, str], int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    """The test's own ``tokenizer_folder``, whose texts begin with its padding token."""
    folder = tmp_path_factory.mktemp("beginning") / "tokenizer"
    shutil.copytree(tokenizer_folder, folder)
    begin_texts(folder, "<|padding|>")
    return folder


@pytest.fixture
def token_folder(
    tokenizer_folder: Path,
    write_tokens: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """Writes a token folder: token_folder(domain, {split: documents of token ids})."""
    from wrinklefree.tokens.tokenizer import end_of_text_id, vocabulary_size

    assert end_of_text_id(tokenizer_folder) == 0

    def make(domain: str, documents: dict[str, list[list[int]]]) -> Path:
        folder = tmp_path_factory.mktemp(domain)
        return write_tokens(folder, domain, documents, vocabulary_size(tokenizer_folder))

    return make
