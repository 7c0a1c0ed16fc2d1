from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from wrinklefree.mixture.build import build_mixture
from wrinklefree.mixture.few_rows import first_training_rows, spread_held_out_rows
from wrinklefree.mixture.loader import HeldOutData, TrainingData
from wrinklefree.mixture.settings import MixtureSettings

HELD_OUT_ROWS = {"a": 2, "b": 30, "c": 17}


@pytest.fixture
def mixture(token_folder, tokenizer_folder: Path, tmp_path: Path) -> Path:
    """Every document fills a row of 8 tokens."""
    tokens = {}
    for domain, held_out in HELD_OUT_ROWS.items():
        documents = torch.randint(3, 320, (40, 7)).tolist()
        splits = {"train": documents, "held_out": documents[:held_out]}
        tokens[domain] = token_folder(domain, splits)
    settings = MixtureSettings(
        sequence_length=8, shuffle_buffer_size=10, weights={"a": 0.5, "b": 0.3, "c": 0.2}
    )
    build_mixture(settings, tokens, tokenizer_folder, tmp_path)
    return tmp_path


@pytest.mark.parametrize("rows", [1, 8, 19])
def test_the_first_training_rows_are_those_of_any_training(mixture: Path, rows: int) -> None:
    batches = list(first_training_rows(TrainingData(mixture, seed=7), rows))
    data = TrainingData(mixture, seed=7)
    steps = [data.batch(step, 0, batch_size=1, micro_batches=1) for step in range(rows)]
    assert torch.equal(
        torch.cat([batch.tokens_BT for batch in batches]),
        torch.cat([batch.tokens_BT for batch in steps]),
    )
    assert torch.cat([batch.sample_B for batch in batches]).tolist() == list(range(rows))
    assert max(len(batch.tokens_BT) for batch in batches) <= 8


@pytest.mark.parametrize(
    ("rows", "shares"),
    [
        (1, {"b": 1}),
        (6, {"a": 2, "b": 2, "c": 2}),
        (25, {"a": 2, "b": 12, "c": 11}),
        (47, {"a": 2, "b": 28, "c": 17}),
        (1000, HELD_OUT_ROWS),
    ],
)
def test_held_out_rows_are_shared_evenly_as_far_as_they_go(
    mixture: Path, rows: int, shares: dict[str, int]
) -> None:
    data = HeldOutData(mixture)
    assert data.rows == HELD_OUT_ROWS
    batches = list(spread_held_out_rows(data, rows))
    domains = torch.cat([batch.domain_B for batch in batches]).tolist()
    assert Counter(data.domains[domain] for domain in domains) == shares
    taken = {(int(d), int(s)) for b in batches for d, s in zip(b.domain_B, b.sample_B, strict=True)}
    assert len(taken) == sum(shares.values())
    assert max(len(batch.tokens_BT) for batch in batches) <= 8
