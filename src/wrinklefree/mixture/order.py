"""Which row a training sample is: a pure function of the seed, the mixture and the sample's number.

There is no iterator and so no state: any number of processes, any size of micro-batch and any
resumed run read the same rows. Three steps lead from a sample to a row.

1. Samples come in blocks. How many samples of each domain lie before the end of a block follows
   from rounding (number of samples) x (share of the domain), so that shares stay exact to a few
   rows for ever. Within a block the domains are in random order. Where the weights change, a new
   series of blocks begins, and no sample before it is affected.
2. So each sample of a domain has a number n among those of its domain, from the run's first sample
   on, whatever the weights were meanwhile.
3. The n-th sample of a domain with R rows is in epoch n // R. In each epoch the rows are permuted
   inside windows of ``shuffle_buffer_size`` rows, anew for every epoch, so that every epoch has
   every row once.

All permutations are keyed by SHA-256 of what they belong to. Shapes: B samples.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

BLOCK_SAMPLES = 8
"""Steps of a multiple of so many rows hold each domain's share to a row, so that the loss of a step
does not jump with what happens to be in it; in steps of other sizes less than a block is left to
chance."""
SHARE_BITS = 40


@dataclass(frozen=True)
class DomainSize:
    """What the order needs to know of a domain."""

    name: str
    rows: int
    tokens: int
    """Without padding."""


@dataclass(frozen=True)
class WeightChange:
    """Weights of the domains from a sample on, until the next change."""

    first_sample: int
    weights: dict[str, float]
    """Share of the training tokens by domain."""


def row_shares(weights: Sequence[float], rows: Sequence[int], tokens: Sequence[int]) -> list[float]:
    """Share of the samples per domain, summing to 1, that makes the shares of tokens the weights.

    Rows of different domains hold different numbers of real tokens, so a domain with more padding
    needs more rows.
    """
    raw = [w * r / t if w > 0 else 0.0 for w, r, t in zip(weights, rows, tokens, strict=True)]
    return [share / sum(raw) for share in raw]


def keyed_permutation(size: int, *key: str | int) -> np.ndarray:
    """A permutation of range(size), int64, that depends on the key alone.

    Sorts raw 64-bit words of Philox, the part of numpy's generators that stays the same between
    versions.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    words = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(size)
    return np.argsort(words, kind="stable")


@dataclass(frozen=True)
class _Phase:
    """Samples under the same weights."""

    first_sample: int
    before: list[int]
    """Samples of each domain before the first."""
    splits: list[int]


@dataclass(frozen=True)
class _Block:
    """A run of samples of one phase, int64 [BLOCK_SAMPLES] each."""

    before: list[int]
    """Samples of each domain before the block."""
    domains: np.ndarray
    ordinals: np.ndarray
    """The how many-th of its domain each sample is."""


class SampleOrder:
    """The order of one mixture under one seed.

    ``changes``: the first one at sample 0, then in ascending order; each names every domain, and
    those with a weight have rows.
    """

    def __init__(
        self,
        domains: Sequence[DomainSize],
        changes: Sequence[WeightChange],
        *,
        shuffle_buffer_size: int,
        seed: int,
    ) -> None:
        starts = [change.first_sample for change in changes]
        assert starts[0] == 0 and all(one < other for one, other in pairwise(starts))
        self.domains = list(domains)
        self.changes = list(changes)
        self._buffer = shuffle_buffer_size
        self._seed = seed
        self._block = lru_cache(maxsize=8)(self._make_block)
        self._window = lru_cache(maxsize=2 * len(domains) + 2)(self._make_window)
        self._phases: list[_Phase] = []
        self._starts: list[int] = []
        for change in changes:
            weights = [change.weights[domain.name] for domain in domains]
            assert all(d.rows > 0 for d, w in zip(domains, weights, strict=True) if w > 0)
            shares = row_shares(weights, [d.rows for d in domains], [d.tokens for d in domains])
            before = self.counts_before(change.first_sample)
            self._phases.append(_Phase(change.first_sample, before, nested_splits(shares)))
            self._starts.append(change.first_sample)

    def locate(self, samples_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(domain index, row within the domain) of each sample number, int64 [B] each."""
        domain_B, ordinal_B = self.ordinals(samples_B)
        row_B = [
            self._row(index, ordinal)
            for index, ordinal in zip(domain_B.tolist(), ordinal_B.tolist(), strict=True)
        ]
        return domain_B, np.array(row_B, dtype=np.int64)

    def ordinals(self, samples_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(domain index, number of the sample among its domain's), int64 [B] each."""
        found = np.empty((2, len(samples_B)), dtype=np.int64)
        for index, sample in enumerate(samples_B.tolist()):
            block, slot = self._find(sample)
            found[:, index] = block.domains[slot], block.ordinals[slot]
        return found[0], found[1]

    def counts_before(self, sample: int) -> list[int]:
        """How many samples of each domain come before sample number ``sample``."""
        if sample == 0:
            return [0] * len(self.domains)
        block, slot = self._find(sample - 1)
        here = np.bincount(block.domains[: slot + 1], minlength=len(self.domains))
        return [before + int(count) for before, count in zip(block.before, here, strict=True)]

    def rows_before(self, sample: int) -> list[np.ndarray]:
        """The rows of each domain that the samples before ``sample`` read, in order, int64."""
        rows = []
        for index, count in enumerate(self.counts_before(sample)):
            size, read = self.domains[index].rows, [np.empty(0, dtype=np.int64)]
            ordinal = 0
            while ordinal < count:
                epoch, position = divmod(ordinal, size)
                first = position // self._buffer * self._buffer
                read.append(first + self._window(index, epoch, position // self._buffer))
                ordinal += len(read[-1])
            rows.append(np.concatenate(read)[:count])
        return rows

    def _find(self, sample: int) -> tuple[_Block, int]:
        """The block of a sample and its place in it."""
        phase = bisect_right(self._starts, sample) - 1
        block, slot = divmod(sample - self._starts[phase], BLOCK_SAMPLES)
        return self._block(phase, block), slot

    def _row(self, index: int, ordinal: int) -> int:
        epoch, position = divmod(ordinal, self.domains[index].rows)
        window, within = divmod(position, self._buffer)
        return window * self._buffer + int(self._window(index, epoch, window)[within])

    def _make_block(self, phase: int, block: int) -> _Block:
        start = self._phases[phase]
        first = start.first_sample + block * BLOCK_SAMPLES
        inside = apportion(block * BLOCK_SAMPLES, start.splits)
        following = apportion((block + 1) * BLOCK_SAMPLES, start.splits)
        counts = np.array(following) - np.array(inside)
        assert counts.min() >= 0 and counts.sum() == BLOCK_SAMPLES
        before = [a + b for a, b in zip(start.before, inside, strict=True)]
        in_order = np.repeat(np.arange(len(counts)), counts)
        domains = in_order[keyed_permutation(BLOCK_SAMPLES, self._seed, "block", first)]
        ordinals = np.empty(BLOCK_SAMPLES, dtype=np.int64)
        for index, count in enumerate(before):
            mine = np.flatnonzero(domains == index)
            ordinals[mine] = count + np.arange(len(mine))
        return _Block(before, domains, ordinals)

    def _make_window(self, index: int, epoch: int, window: int) -> np.ndarray:
        domain = self.domains[index]
        size = min(self._buffer, domain.rows - window * self._buffer)
        return keyed_permutation(size, self._seed, "window", domain.name, epoch, window)


def nested_splits(shares: list[float]) -> list[int]:
    """Each share over what the shares before it leave, as an integer over 2**SHARE_BITS."""
    splits = []
    for index, share in enumerate(shares):
        left = sum(shares[index:])
        splits.append(round(share / left * 2**SHARE_BITS) if share > 0 else 0)
    last = max(index for index, share in enumerate(shares) if share > 0)
    splits[last] = 1 << SHARE_BITS
    return splits


def apportion(samples: int, splits: list[int]) -> list[int]:
    """``samples`` divided over the domains, adding up and within a few of the shares.

    A chain of roundings in integers: each divides what is left in two parts that both never shrink
    as ``samples`` grows.
    """
    counts, left = [], samples
    for part in splits:
        count = (left * part + (1 << (SHARE_BITS - 1))) >> SHARE_BITS
        counts.append(count)
        left -= count
    return counts
