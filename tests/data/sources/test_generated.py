from __future__ import annotations

from pathlib import Path

from wrinklefree.config.sources import GeneratedSource
from wrinklefree.data.sources.generated import documents


def texts(documents_wanted: int, seed: int) -> list[str]:
    source = GeneratedSource(
        kind="generated",
        domain="d",
        licence="l",
        generator="mathematics",
        documents=documents_wanted,
        seed=seed,
    )
    found = list(documents(source, cache=Path()))
    assert len({document.id for document in found}) == documents_wanted
    return [document.text for document in found]


def test_more_documents_extend_the_same_sequence_and_seed_changes_it() -> None:
    assert texts(7, seed=3)[:5] == texts(5, seed=3)
    assert set(texts(5, seed=3)).isdisjoint(texts(5, seed=4))
