"""Artifacts of three sources in two domains, and their mixture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wrinklefree.evaluate.data_report.report import DataReport, measure
from wrinklefree.evaluate.settings import DataReportSettings
from wrinklefree.mixture.build import build_mixture
from wrinklefree.mixture.settings import MixtureSettings
from wrinklefree.text.documents.document import Document
from wrinklefree.text.documents.parquet import DocumentWriter
from wrinklefree.tracking.artifact import Origin, writing_artifact

VOCABULARY, LENGTH = 300, 16
SETTINGS = DataReportSettings(samples_per_domain=2, share_samples=1000, read_samples=128)
SHARED = "a text that both of the sources of prose have"
LEAKED = "held out here and trained on there"
TEXTS = {
    "books": {
        "train": [f"book {n} " + "word " * n for n in range(40)] + [SHARED],
        "held_out": ["the last book", LEAKED],
    },
    "papers": {
        "train": [f"paper {n}" for n in range(30)] + [SHARED, LEAKED, "twice", "twice"],
        "held_out": ["the last paper"],
    },
    "scripts": {
        "train": [f"def f{n}(): return {n}\n" * 9 for n in range(25)] + ["not tokenized"],
        "held_out": ["def last(): <script>"],
    },
}
DOMAINS = {"books": "prose", "papers": "prose", "scripts": "code"}
FETCHED = {
    "books": {"dropped_empty": 0, "dropped_duplicates": 2, "licence": "CC0"},
    "papers": {"dropped_empty": 1, "dropped_duplicates": 0},
    "scripts": {"dropped_empty": 0, "dropped_duplicates": 0},
}
CLEANED = {
    "books": {"dropped": {"language": {"documents": 3, "paragraphs": 0, "bytes": 100}}},
    "papers": {"dropped": {"language": {"documents": 0, "paragraphs": 0, "bytes": 0}}},
    "scripts": {"dropped": {}},
}


def _artifact(path: Path, facts: dict[str, Any], name: str = "") -> Path:
    with writing_artifact(path, Origin("made", {}, {})) as (folder, written):
        written.update(facts)
        if name:
            with DocumentWriter(folder, DOMAINS[name]) as writer:
                for split, texts in TEXTS[name].items():
                    for number, text in enumerate(texts):
                        writer.append(Document(f"{split}{number}", text), split)
    return path


@pytest.fixture(scope="session")
def token_folders(
    write_tokens: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokens")
    folders = {}
    for name, splits in TEXTS.items():
        documents = {
            split: [
                [3 + ord(letter) % 200 for letter in text]
                for text in texts
                if text != "not tokenized"
            ]
            for split, texts in splits.items()
        }
        folders[name] = root / name
        folders[name].mkdir()
        write_tokens(folders[name], DOMAINS[name], documents, VOCABULARY)
    return folders


@pytest.fixture(scope="session")
def packed(
    token_folders: dict[str, Path], tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The mixture: 70 % prose, 30 % code."""
    folder = tmp_path_factory.mktemp("packed")
    settings = MixtureSettings(
        sequence_length=LENGTH, shuffle_buffer_size=10, weights={"prose": 0.7, "code": 0.3}
    )
    build_mixture(settings, token_folders, tokenizer_folder, folder)
    return folder


@pytest.fixture(scope="session")
def sources(
    token_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Path], dict[str, Path], dict[str, Path]]:
    """Fetched, cleaned and token folders of all sources."""
    root = tmp_path_factory.mktemp("sources")
    raw = {name: _artifact(root / "raw" / name, FETCHED[name]) for name in TEXTS}
    clean = {name: _artifact(root / "clean" / name, CLEANED[name], name) for name in TEXTS}
    return raw, clean, token_folders


@pytest.fixture(scope="session")
def measured(
    sources: tuple[dict[str, Path], dict[str, Path], dict[str, Path]], packed: Path
) -> Callable[..., DataReport]:
    """``measured(seed, **settings)``: the report under other settings."""

    def make(seed: int = 5, **changes: Any) -> DataReport:
        return measure(SETTINGS.model_copy(update=changes), *sources, packed, seed=seed)

    return make


@pytest.fixture(scope="session")
def report(measured: Callable[..., DataReport]) -> DataReport:
    return measured()
