"""What training reads of each domain: the shares asked for, and those that come out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wrinklefree.mixture.loader import TrainingData
from wrinklefree.mixture.rows import Mixture
from wrinklefree.tracking.progress import progress

ROWS_AT_A_TIME = 64
"""Rows of a batch: bounds memory and changes nothing else."""


@dataclass(frozen=True)
class DomainShare:
    """A domain's part of the training tokens, padding not counted."""

    asked: float
    """Its weight."""
    ordered: float
    """In a long run: the rows that the order gives it, with as many tokens as its rows have."""
    read: float
    """In the batches that were read."""
    epochs: float
    """How often the long run reads all of its rows."""
    epoch_samples: float | None
    """Samples after which its rows have been read once; None for a domain that is never read."""

    def as_json(self) -> dict[str, Any]:
        """``shares`` of a domain in ``report.json``."""
        return asdict(self)


def realised_shares(
    folder: Path, mixture: Mixture, *, seed: int, share_samples: int, read_samples: int
) -> dict[str, DomainShare]:
    """Shares of every domain under the weights of the mixture itself.

    Parameters
    ----------
    folder, mixture : the mixture folder, and what ``read_mixture`` gave of it.
    seed : of the order.
    share_samples : length of the run whose rows are counted.
    read_samples : how many of its first samples are read.
    """
    data = TrainingData(folder, seed=seed)
    epochs = data.epochs(share_samples)
    ordered = {d.name: epochs[d.name] * d.train_tokens for d in mixture.domains}
    read = dict(zip(data.domains, _read_tokens(data, read_samples).tolist(), strict=True))
    asked = {d.name: d.weight for d in mixture.domains}
    return {
        name: DomainShare(
            asked=asked[name] / sum(asked.values()),
            ordered=ordered[name] / sum(ordered.values()),
            read=read[name] / sum(read.values()),
            epochs=epochs[name],
            epoch_samples=share_samples / epochs[name] if epochs[name] else None,
        )
        for name in data.domains
    }


def _read_tokens(data: TrainingData, samples: int) -> np.ndarray:
    """Tokens of each domain in the first samples, int64 [domains], one batch after the other."""
    tokens = np.zeros(len(data.domains), dtype=np.int64)
    steps = range(-(-samples // ROWS_AT_A_TIME))
    for step in progress(iter(steps), "read", "batches", len(steps)):
        batch = data.batch(step, 0, batch_size=ROWS_AT_A_TIME, micro_batches=1)
        inside_B = (batch.sample_B < samples).numpy()
        tokens_B = (batch.document_ids_BT >= 0).sum(1).numpy()
        np.add.at(tokens, batch.domain_B.numpy()[inside_B], tokens_B[inside_B])
    return tokens
