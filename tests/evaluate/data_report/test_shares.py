from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wrinklefree.evaluate.data_report.shares import DomainShare, realised_shares
from wrinklefree.mixture.loader import TrainingData
from wrinklefree.mixture.rows import read_mixture


def shares_of(packed: Path, samples: int, read: int) -> dict[str, DomainShare]:
    mixture = read_mixture(packed)
    return realised_shares(packed, mixture, seed=5, share_samples=samples, read_samples=read)


@pytest.mark.parametrize("samples", [1, 63, 64, 200])
def test_shares_are_those_of_the_rows_read_one_by_one(packed: Path, samples: int):
    data = TrainingData(packed, seed=5)
    mixture = read_mixture(packed)
    rows, tokens = np.zeros(2), np.zeros(2)
    for sample in range(samples):
        batch = data.batch(sample, 0, batch_size=1, micro_batches=1)
        rows[batch.domain_B] += 1
        tokens[batch.domain_B] += (batch.document_ids_BT >= 0).sum().item()
    found = shares_of(packed, samples, samples)
    mean = np.array([domain.train_tokens / len(domain.train) for domain in mixture.domains])
    for index, domain in enumerate(mixture.domains):
        share = found[domain.name]
        assert share.asked == domain.weight
        assert share.read == pytest.approx(tokens[index] / tokens.sum())
        assert share.ordered == pytest.approx(rows[index] * mean[index] / (rows @ mean))
        assert share.epochs == pytest.approx(rows[index] / len(domain.train))


def test_a_long_run_has_the_shares_that_were_asked_for(packed: Path):
    for share in shares_of(packed, 50_000, 64).values():
        assert share.ordered == pytest.approx(share.asked, abs=0.001)
        assert share.epoch_samples is not None
        assert share.epochs * share.epoch_samples == pytest.approx(50_000)
