"""Which row a training sample is: a pure function of the seed, the mixture and the sample's number.

There is no iterator and so no state: any number of processes, any size of micro-batch and any
resumed run read the same rows. Three steps lead from a sample to a row.

1. Samples come in blocks. How many samples of each domain lie before the end of a block follows
   from rounding (number of samples) x (share of the domain), so that shares stay exact to a few
   rows for ever.
2. Within a block the domains are in random order.
3. The n-th sample of a domain with R rows is in epoch n // R. In each epoch the rows are permuted
   inside windows of ``shuffle_buffer_size`` rows, anew for every epoch, so that every epoch has
   every row once.

All permutations are keyed by SHA-256 of what they belong to. Shapes: B samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

BLOCK_SAMPLES = 256
SHARE_BITS = 40


@dataclass(frozen=True)
class DomainSize:
    """What the order needs to know of a domain."""

    name: str
    weight: float
    """Share of the training tokens."""
    rows: int
    tokens: int
    """Without padding."""


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


class SampleOrder:
    """The order of one mixture under one seed."""

    def __init__(self, domains: Sequence[DomainSize], shuffle_buffer_size: int, seed: int) -> None:
        assert all(d.rows > 0 for d in domains if d.weight > 0)
        self._domains = list(domains)
        self._buffer = shuffle_buffer_size
        self._seed = seed
        shares = row_shares(
            [d.weight for d in domains], [d.rows for d in domains], [d.tokens for d in domains]
        )
        self._splits = _nested_splits(shares)
        self._block = lru_cache(maxsize=8)(self._make_block)
        self._window = lru_cache(maxsize=2 * len(domains) + 2)(self._make_window)

    def locate(self, samples_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(domain index, row within the domain) of each sample number, int64 [B] each."""
        located = np.array([self._locate(int(sample)) for sample in samples_B], dtype=np.int64)
        return located.reshape(-1, 2)[:, 0], located.reshape(-1, 2)[:, 1]

    def counts_before(self, sample: int) -> list[int]:
        """How many samples of each domain come before sample number ``sample``.

        Exact where ``sample`` is a multiple of ``BLOCK_SAMPLES``. A chain of roundings in integers:
        each divides what is left in two parts that both never shrink as ``sample`` grows.
        """
        counts, left = [], sample
        for part in self._splits:
            count = (left * part + (1 << (SHARE_BITS - 1))) >> SHARE_BITS
            counts.append(count)
            left -= count
        return counts

    def _locate(self, sample: int) -> tuple[int, int]:
        domains, ordinals = self._block(sample // BLOCK_SAMPLES)
        slot = sample % BLOCK_SAMPLES
        index = int(domains[slot])
        domain = self._domains[index]
        epoch, position = divmod(int(ordinals[slot]), domain.rows)
        window, within = divmod(position, self._buffer)
        return index, window * self._buffer + int(self._window(index, epoch, window)[within])

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Domain of each slot of a block, and which sample of that domain it is."""
        before = self.counts_before(block * BLOCK_SAMPLES)
        after = self.counts_before((block + 1) * BLOCK_SAMPLES)
        counts = np.array(after) - np.array(before)
        assert counts.min() >= 0 and counts.sum() == BLOCK_SAMPLES
        in_order = np.repeat(np.arange(len(counts)), counts)
        domains = in_order[keyed_permutation(BLOCK_SAMPLES, self._seed, "block", block)]
        ordinals = np.empty(BLOCK_SAMPLES, dtype=np.int64)
        for domain, start in enumerate(before):
            mine = np.flatnonzero(domains == domain)
            ordinals[mine] = start + np.arange(len(mine))
        return domains, ordinals

    def _make_window(self, index: int, epoch: int, window: int) -> np.ndarray:
        domain = self._domains[index]
        size = min(self._buffer, domain.rows - window * self._buffer)
        return keyed_permutation(size, self._seed, "window", domain.name, epoch, window)


def _nested_splits(shares: list[float]) -> list[int]:
    """Each share over what the shares before it leave, as an integer over 2**SHARE_BITS."""
    splits = []
    for index, share in enumerate(shares):
        left = sum(shares[index:])
        splits.append(round(share / left * 2**SHARE_BITS) if share > 0 else 0)
    last = max(index for index, share in enumerate(shares) if share > 0)
    splits[last] = 1 << SHARE_BITS
    return splits
