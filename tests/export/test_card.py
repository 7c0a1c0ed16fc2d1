from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from wrinklefree.downloads.settings import BaseSource
from wrinklefree.evaluate.scores import (
    HeldOutScores,
    ModelScore,
    ScoreSums,
    domain_score,
    loss_variance,
    overall_score,
)
from wrinklefree.export.card import add_data_to_card, add_losses_to_card
from wrinklefree.tracking.artifact import Origin, writing_artifact


def make(folder: Path, stage: str, settings: dict[str, Any], facts: dict[str, Any]) -> Path:
    with writing_artifact(folder, Origin(stage, {}, settings)) as (_, written):
        written |= facts
    return folder


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    sources = {
        "poems": {"licence": "CC-BY-4.0", "kind": "hub", "dataset": "someone/poems"},
        "notes": {"licence": "CC0-1.0", "kind": "hub", "dataset": str(tmp_path)},
        "manuals": {"licence": "MIT", "kind": "package"},
    }
    domains = {
        "prose": {
            "sources": {"poems": {"train": 1234}, "notes": {"train": 5}},
            "train": {"tokens": 4000},
        },
        "code": {"sources": {"manuals": {"train": 9}}, "train": {"tokens": 1000}},
    }
    settings = {"sources": sources, "mixture": {"sequence_length": 2048}}
    return make(tmp_path / "mixture", "mixture", settings, {"domains": domains})


HEADER = "---\nlibrary_name: transformers\n---\n"


@pytest.mark.parametrize(
    ("source", "named", "said"),
    [
        ({"kind": "scratch"}, {}, "trained from scratch"),
        (
            {"kind": "hub", "repository": "someone/model", "revision": "0a" * 20},
            {"base_model": "someone/model", "base_model_relation": "quantized"},
            f"is `someone/model` of the Hugging Face hub, commit `{'0a' * 20}`. Its licence is MIT",
        ),
        (
            {
                "kind": "gguf",
                "package": "a",
                "version": "1",
                "member": "b.gguf",
                "sha256": "0" * 64,
            },
            {},
            "is `b.gguf` of package a 1. Its licence is not known here (export.base_licence); what",
        ),
        ({"kind": "folder", "path": "/home/me", "sha256": "0" * 64}, {}, f"sha256 `{'0' * 64}`"),
    ],
    ids=lambda one: one.get("kind") if isinstance(one, dict) else None,
)
def test_the_card_names_base_and_every_source_with_its_licence_and_its_share_of_what_was_read(
    mixture: Path, tmp_path: Path, source: dict[str, str], named: dict[str, str], said: str
):
    epochs = {"prose": 0.75, "code": 1.0}  # of 4,000 and of 1,000 tokens
    last = {"first_sample": 90, "weights": {"prose": 0.0, "code": 1.0}}
    facts = {"tokens": 285702, "epochs": epochs, "weight_changes": [last]}
    model = make(tmp_path / "model", "distill", {"distill": {"ar": {"steps": 140}}}, facts)
    (tmp_path / "README.md").write_text(f"{HEADER}\n# A model\n", encoding="utf-8")
    licence = "MIT" if source["kind"] == "hub" else None
    base = TypeAdapter(BaseSource).validate_python(source)
    add_data_to_card(tmp_path, model, mixture, base, licence)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    _, header, text = card.split("---\n", 2)
    own = {"library_name": "transformers", "datasets": ["someone/poems"]}
    assert yaml.safe_load(header) == own | named
    assert text.startswith("\n# A model\n") and said in text and "/home/me" not in text
    assert "stage `distill`, read 285,702 tokens in rows of 2,048" in card
    assert "distill:\n  ar:\n    steps: 140\n```" in card
    assert [line for line in card.splitlines() if line.startswith("| ")][1:] == [
        "| manuals | code, 25.0% | 9 | MIT |",
        "| notes | prose, 75.0% | 5 | CC0-1.0 |",
        "| poems | prose, 75.0% | 1,234 | CC-BY-4.0 |",
    ]


def test_the_card_has_losses_with_their_errors_and_none_of_a_single_document(tmp_path: Path):
    prose = ScoreSums([30.0, 50.0], [10, 10], [40, 40])
    code = ScoreSums([20.0], [10], [30])
    domains = {
        name: domain_score(HeldOutScores(sums, sums), name)
        for name, sums in (("prose", prose), ("code", code))
    }
    weights = {"prose": 0.75, "code": 0.25}
    score = ModelScore(
        "autoregressive",
        True,
        overall_score(domains, weights),
        domains,
        loss_variance(domains, weights),
    )
    add_losses_to_card(tmp_path, score, rows_per_domain=16)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "at most 16 rows of each domain" in card
    assert [line for line in card.splitlines() if line.startswith("| ")][1:] == [
        "| prose | 2 | 4.000 ± 1.000 |",
        "| code | 1 | 2.000 |",
        "| the mixture | 3 | 3.500 |",
    ]
