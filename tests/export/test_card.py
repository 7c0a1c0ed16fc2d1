from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
        "poems": {"licence": "CC-BY-4.0"},
        "notes": {"licence": "CC0-1.0"},
        "manuals": {"licence": "MIT"},
    }
    domains = {
        "prose": {"sources": {"poems": {"train": 1234}, "notes": {"train": 5}}},
        "code": {"sources": {"manuals": {"train": 9}}},
    }
    settings = {"sources": sources, "mixture": {"sequence_length": 2048}}
    return make(tmp_path / "mixture", "mixture", settings, {"domains": domains})


def test_the_card_names_every_source_with_its_licence_and_the_last_weights(
    mixture: Path, tmp_path: Path
):
    first, last = ({"prose": 0.5, "code": 0.5}, {"prose": 0.75, "code": 0.25})
    facts = {"tokens": 285702, "weight_changes": [{"weights": first}, {"weights": last}]}
    model = make(tmp_path / "model", "distill", {"distill": {"ar": {"steps": 140}}}, facts)
    (tmp_path / "README.md").write_text("# A model\n", encoding="utf-8")
    add_data_to_card(tmp_path, model, mixture)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# A model\n")
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
    add_losses_to_card(tmp_path, score)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert [line for line in card.splitlines() if line.startswith("| ")][1:] == [
        "| prose | 2 | 4.000 ± 1.000 |",
        "| code | 1 | 2.000 |",
        "| the mixture | 3 | 3.500 |",
    ]
