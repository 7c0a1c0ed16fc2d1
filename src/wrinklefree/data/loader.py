"""Batches of rows for training and for held-out evaluation.

Shapes: B rows of a batch, T tokens of a row, V ids of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wrinklefree.data.order import DomainSize, SampleOrder
from wrinklefree.data.rows import Mixture, Rows, read_mixture
from wrinklefree.errors import UserError


@dataclass(frozen=True)
class Batch:
    """Rows of documents. All tensors are int64."""

    tokens_BT: Tensor
    """Token ids; padding is end of text."""
    document_ids_BT: Tensor
    """Number of the document piece within the row, -1 on padding."""
    positions_BT: Tensor
    """Position within the document piece, from 0."""
    domain_B: Tensor
    """Index into the ``domains`` of the data the batch comes from."""
    sample_B: Tensor
    """Training: number of the sample since step 0. Held out: number of the row."""

    def to(self, device: torch.device) -> Batch:
        """The same rows on ``device``."""
        return Batch(**{name: tensor.to(device) for name, tensor in vars(self).items()})


class TrainingData:
    """The training rows of a mixture folder in their order under a seed.

    Raises UserError for a folder whose files are missing, truncated or edited.
    """

    def __init__(self, mixture: Path, *, seed: int) -> None:
        self._mixture = read_mixture(mixture)
        self._domains = self._mixture.domains
        self._order = SampleOrder(
            [DomainSize(d.name, d.weight, len(d.train), d.train_tokens) for d in self._domains],
            self._mixture.shuffle_buffer_size,
            seed,
        )
        self.domains = [domain.name for domain in self._domains]
        self.sequence_length = self._mixture.sequence_length
        self.vocabulary_size = self._mixture.vocabulary_size
        self.end_of_text_id = self._mixture.end_of_text_id

    def batch(self, step: int, micro_batch: int, *, batch_size: int, micro_batches: int) -> Batch:
        """Micro-batch ``micro_batch`` of the ``micro_batches`` of a step: a pure function.

        Samples of a step are numbered from step * batch_size * micro_batches, so the rows of a step
        depend on the product only. With many processes, each asks for its own micro-batches.
        """
        assert 0 <= micro_batch < micro_batches
        first = (step * micro_batches + micro_batch) * batch_size
        samples_B = np.arange(first, first + batch_size)
        domain_B, row_B = self._order.locate(samples_B)
        rows = [self._domains[domain].train for domain in domain_B]
        return _batch(self._mixture, rows, row_B, domain_B, samples_B)


class HeldOutData:
    """The held-out rows of a mixture folder.

    Raises UserError for a folder whose files are missing, truncated or edited.
    """

    def __init__(self, mixture: Path) -> None:
        self._mixture = read_mixture(mixture)
        self.domains = [domain.name for domain in self._mixture.domains]
        self.rows = {domain.name: len(domain.held_out) for domain in self._mixture.domains}
        self.sequence_length = self._mixture.sequence_length
        self.vocabulary_size = self._mixture.vocabulary_size
        self.end_of_text_id = self._mixture.end_of_text_id
        self.token_bytes_V = torch.from_numpy(self._mixture.token_bytes_V.astype(np.int64))

    def batches(self, domain: str, *, rows: int, batch_size: int) -> Iterator[Batch]:
        """At most ``rows`` rows of a domain, spread evenly over all it has; the last may be short.

        Raises UserError for a domain that the mixture does not have.
        """
        if domain not in self.domains:
            raise UserError(
                f"the mixture has no domain {domain!r}; it has {', '.join(self.domains)}"
            )
        index = self.domains.index(domain)
        held_out = self._mixture.domains[index].held_out
        count = min(rows, len(held_out))
        chosen = np.arange(count) * len(held_out) // max(count, 1)
        for start in range(0, count, batch_size):
            row_B = chosen[start : start + batch_size]
            domain_B = np.full(len(row_B), index)
            yield _batch(self._mixture, [held_out] * len(row_B), row_B, domain_B, row_B)


def _batch(
    mixture: Mixture,
    rows: list[Rows],
    row_B: np.ndarray,
    domain_B: np.ndarray,
    sample_B: np.ndarray,
) -> Batch:
    read = [
        source.read(int(row), mixture.vocabulary_size)
        for source, row in zip(rows, row_B, strict=True)
    ]
    tokens_BT, document_ids_BT, positions_BT = (
        torch.from_numpy(np.stack(column)) for column in zip(*read, strict=True)
    )
    domain, sample = (torch.from_numpy(a.astype(np.int64)) for a in (domain_B, sample_B))
    return Batch(tokens_BT, document_ids_BT, positions_BT, domain, sample)
