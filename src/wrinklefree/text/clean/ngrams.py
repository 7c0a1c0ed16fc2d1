"""Hashes of word n-grams, many texts at a time.

A word is a run of letters, digits or underscores, in lower case. Its hash has 64 bits, that of n
words is their polynomial modulo 2**64. Shapes: T texts, W words of all texts, G n-grams.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

_WORD = re.compile(r"\w+")
_BASE = np.uint64(0x9E3779B97F4A7C15)
_MAX_CACHED_WORDS = 1 << 19
_MERGED_AT = 1 << 22


class _WordHashes(dict[str, int]):
    """Hash by word; the common ones are computed once."""

    def __missing__(self, word: str) -> int:
        key = hashlib.blake2b(word.encode(), digest_size=8).digest()
        self[word] = value = int.from_bytes(key, "little")
        return value


_word_hashes = _WordHashes()


def ngram_hashes(texts: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all runs of ``n`` words within a text, uint64 [G], and the text of each, int [G].

    A text of fewer words has one run, all of them; a text without words has none.
    """
    words = [_WORD.findall(text.lower()) for text in texts]
    lengths_T = np.array([len(found) for found in words], dtype=np.int64)
    total = int(lengths_T.sum())
    if len(_word_hashes) > _MAX_CACHED_WORDS:
        _word_hashes.clear()
    hashes = map(_word_hashes.__getitem__, chain.from_iterable(words))
    hashes_W = np.fromiter(hashes, np.uint64, total)
    starts_T = np.concatenate([[0], np.cumsum(lengths_T)[:-1]])
    text_W = np.repeat(np.arange(len(texts)), lengths_T)
    left_W = (starts_T + lengths_T)[text_W] - np.arange(total)
    start_G = np.flatnonzero((left_W >= n) | (np.arange(total) == starts_T[text_W]))
    size_G = np.minimum(left_W[start_G], n)
    hash_G = np.zeros(len(start_G), np.uint64)
    for offset in range(int(size_G.max(initial=0))):
        inside = size_G > offset
        if inside.all():
            hash_G = hash_G * _BASE + hashes_W[start_G + offset]
        else:
            hash_G[inside] = hash_G[inside] * _BASE + hashes_W[start_G[inside] + offset]
    return hash_G, text_W[start_G]


def different_ngrams(batches: Iterable[Sequence[str]], n: int) -> np.ndarray:
    """The different hashes of all texts, sorted, uint64.

    Memory: 8 bytes for each different n-gram, twice while two sets are merged.
    """
    merged = np.empty(0, np.uint64)
    pending: list[np.ndarray] = []
    for texts in batches:
        pending.append(_sorted_set(ngram_hashes(texts, n)[0]))
        if sum(map(len, pending)) >= _MERGED_AT:
            merged, pending = _sorted_set(np.concatenate([merged, *pending])), []
    return _sorted_set(np.concatenate([merged, *pending]))


def _sorted_set(values: np.ndarray) -> np.ndarray:
    """As ``np.unique``, whose hash table takes ten times as long on these."""
    values = np.sort(values)
    return values[np.append(True, values[1:] != values[:-1])] if len(values) else values


class HashIndex:
    """Finds hashes in a sorted array; memory 8 to 24 bytes for each hash of it."""

    def __init__(self, sorted_hashes: np.ndarray) -> None:
        self.hashes = sorted_hashes
        # Most hashes that are looked for are not there: a table by their first bits says so.
        bits = max(len(sorted_hashes), 1).bit_length() + 3
        self._shift = np.uint64(64 - bits)
        self._present = np.zeros(1 << bits, dtype=bool)
        self._present[sorted_hashes >> self._shift] = True

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The places of those in ``hashes`` that are in the index, and where they stand there."""
        place = np.flatnonzero(self._present[hashes >> self._shift])
        if not len(self.hashes):
            return place, place
        position = np.searchsorted(self.hashes, hashes[place])
        position[position == len(self.hashes)] = 0
        there = self.hashes[position] == hashes[place]
        return place[there], position[there]
