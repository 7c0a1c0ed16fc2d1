"""Batches of rows for training and for held-out evaluation.

Shapes: B rows of a batch, T tokens of a row, V ids of the vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from wrinklefree.errors import UserError
from wrinklefree.mixture.batch import Batch
from wrinklefree.mixture.curriculum import EasyFirst, mean_piece_lengths, rows_of_run
from wrinklefree.mixture.order import DomainSize, SampleOrder, WeightChange
from wrinklefree.mixture.rows import (
    DomainRows,
    Rows,
    read_mixture,
)
from wrinklefree.mixture.settings import WEIGHT_TOLERANCE


class TrainingData:
    """The training rows of a mixture folder in their order under a seed.

    Parameters
    ----------
    weights : shares of the training tokens by domain, in place of the mixture's own.
    changes : weights that hold from a sample on, by ascending first sample; at sample 0 they take
        the place of ``weights``. They affect no sample before them.
    shuffle_buffer_size : in place of the mixture's own.

    Raises
    ------
    UserError : weights don't fit it.
    """

    def __init__(
        self,
        mixture: Path,
        *,
        seed: int,
        weights: dict[str, float] | None = None,
        changes: Sequence[WeightChange] = (),
        shuffle_buffer_size: int | None = None,
    ) -> None:
        self._mixture = read_mixture(mixture)
        self._domains = self._mixture.domains
        own = {domain.name: domain.weight for domain in self._domains}
        self.changes = [WeightChange(0, own if weights is None else weights), *changes]
        if changes and changes[0].first_sample == 0:
            del self.changes[0]
        for change in self.changes:
            _check_weights(mixture, self._domains, change)
        # In the order of the domains, whatever that of the settings is: histories list them.
        self.changes = [
            WeightChange(c.first_sample, {name: c.weights[name] for name in own})
            for c in self.changes
        ]
        self._seed = seed
        self._shuffle_buffer_size = shuffle_buffer_size or self._mixture.shuffle_buffer_size
        self._arrange()
        self._planned = self.changes
        self.domains = [domain.name for domain in self._domains]
        self.max_repetition = self._mixture.max_repetition
        self.sequence_length = self._mixture.sequence_length
        self.vocabulary_size = self._mixture.vocabulary_size
        self.end_of_text_id = self._mixture.end_of_text_id

    def _arrange(self) -> None:
        self._order = SampleOrder(
            [DomainSize(d.name, len(d.train), d.train_tokens) for d in self._domains],
            self.changes,
            shuffle_buffer_size=self._shuffle_buffer_size,
            seed=self._seed,
        )
        self._locate = self._order.locate

    def batch(self, step: int, micro_batch: int, *, batch_size: int, micro_batches: int) -> Batch:
        """Micro-batch ``micro_batch`` of the ``micro_batches`` of a step: a pure function.

        Samples of a step are numbered from step * batch_size * micro_batches, so the rows of a step
        depend on the product only. With many processes, each asks for its own micro-batches.
        """
        assert 0 <= micro_batch < micro_batches
        first = (step * micro_batches + micro_batch) * batch_size
        samples_B = np.arange(first, first + batch_size)
        domain_B, row_B = self._locate(samples_B)
        rows = [self._domains[domain].train for domain in domain_B]
        return _batch(rows, row_B, domain_B, samples_B)

    def weights_at(self, sample: int) -> dict[str, float]:
        """The share of the training tokens by domain that holds for a sample."""
        return [c.weights for c in self.changes if c.first_sample <= sample][-1]

    def planned_weights_at(self, sample: int) -> dict[str, float]:
        """Those that would hold if nothing had :meth:`changed` them."""
        return [c.weights for c in self._planned if c.first_sample <= sample][-1]

    def changed(self, first_sample: int, weights: dict[str, float]) -> TrainingData:
        """The same rows under other weights from a sample on; what comes before stays as it is."""
        other = copy.copy(self)
        others = [c for c in self.changes if c.first_sample != first_sample]
        ours = WeightChange(first_sample, {name: weights[name] for name in self.domains})
        other.changes = sorted([*others, ours], key=lambda change: change.first_sample)
        other._arrange()
        return other

    def domain_batch(self, domain: str, *, rows: int, offset: int) -> Batch:
        """At most ``rows`` training rows of a domain, spread evenly from row ``offset`` on."""
        index = self.domains.index(domain)
        train = self._domains[index].train
        count = min(rows, len(train))
        row_B = (np.arange(count) * len(train) // count + offset) % len(train)
        return _batch([train] * count, row_B, np.full(count, index), row_B)

    def epochs(self, samples: int) -> dict[str, float]:
        """How often the first ``samples`` samples read each domain's rows, 1.0 being once."""
        counts = self._order.counts_before(samples)
        return {
            domain.name: count / max(len(domain.train), 1)
            for domain, count in zip(self._domains, counts, strict=True)
        }

    def train_tokens(self, domain: str) -> int:
        """Tokens that a domain has to train on, without padding."""
        return self._domains[self.domains.index(domain)].train_tokens

    def rows_of_run(self, samples: int) -> dict[str, np.ndarray]:
        """Numbers of the rows by domain that the first ``samples`` samples read, int64 ascending.

        The order in which ``mean_piece_lengths``, ``batches_of`` and ``easy_first`` have them.
        """
        return dict(zip(self.domains, rows_of_run(self._order, samples), strict=True))

    def mean_piece_lengths(self, samples: int) -> np.ndarray:
        """For each row of a run: tokens in the piece that its mean token is in, float64."""
        chosen = self.rows_of_run(samples).values()
        return np.concatenate(
            [mean_piece_lengths(d.train, r) for d, r in zip(self._domains, chosen, strict=True)]
        )

    def batches_of(self, samples: int, batch_size: int) -> Iterator[Batch]:
        """The rows of a run, each once; no batch has rows of two domains."""
        for index, chosen in enumerate(self.rows_of_run(samples).values()):
            for start in range(0, len(chosen), batch_size):
                row_B = chosen[start : start + batch_size]
                rows = [self._domains[index].train] * len(row_B)
                yield _batch(rows, row_B, np.full(len(row_B), index), row_B)

    def easy_first(self, samples: int, scores: np.ndarray) -> TrainingData:
        """The same run with each domain's rows by ascending score (one of every row, float64)."""
        sizes = [len(chosen) for chosen in self.rows_of_run(samples).values()]
        by_domain = np.split(scores, np.cumsum(sizes)[:-1])
        sorted_data = copy.copy(self)
        sorted_data._locate = EasyFirst(self._order, samples, by_domain).locate
        return sorted_data


def _check_weights(mixture: Path, domains: list[DomainRows], change: WeightChange) -> None:
    names, where = {domain.name for domain in domains}, f"weights from sample {change.first_sample}"
    if wrong := sorted(names ^ set(change.weights)):
        raise UserError(
            f"{where} and the domains of {mixture} differ in {', '.join(wrong)}; name all of"
            f" {', '.join(sorted(names))}, with weight 0 to leave one out"
        )
    total = sum(change.weights.values())
    if min(change.weights.values()) < 0 or not abs(total - 1) <= WEIGHT_TOLERANCE:
        raise UserError(f"{where} sum to {total:.6g} or one is negative; expected shares of 1")
    for domain in domains:
        if change.weights[domain.name] > 0 and not len(domain.train):
            raise UserError(
                f"{where} give domain {domain.name} a share, but {mixture} has no training rows of"
                " it; give it weight 0 or more text"
            )


class HeldOutData:
    """The held-out rows of a mixture folder."""

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
            yield _batch([held_out] * len(row_B), row_B, domain_B, row_B)


def _batch(
    rows: list[Rows],
    row_B: np.ndarray,
    domain_B: np.ndarray,
    sample_B: np.ndarray,
) -> Batch:
    read = [source.read(int(row)) for source, row in zip(rows, row_B, strict=True)]
    tokens_BT, ids_BT, positions_BT, sources_BT, source_positions_BT = (
        torch.from_numpy(np.stack(column)) for column in zip(*read, strict=True)
    )
    domain, sample = (torch.from_numpy(a.astype(np.int64)) for a in (domain_B, sample_B))
    return Batch(tokens_BT, ids_BT, positions_BT, sources_BT, source_positions_BT, domain, sample)
