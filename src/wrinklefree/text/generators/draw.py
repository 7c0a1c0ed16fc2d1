"""Random choices that repeat: the same key gives the same choices on every machine and version."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Problem(NamedTuple):
    """A question with its worked solution. Every equation in ``steps`` holds."""

    kind: str
    question: str
    steps: str
    answer: str


LEVELS = (1, 2, 3, 4, 5)


class Draw:
    """Choices keyed by any number of strings and integers, at a level of difficulty.

    Built on ``random.Random.random`` alone, the one method whose sequence Python promises to keep.
    """

    def __init__(self, *key: str | int, level: int = 2) -> None:
        assert level in LEVELS, level
        self._level = level
        digest = hashlib.sha256(repr(key).encode()).digest()
        self._uniform = random.Random(int.from_bytes(digest, "big")).random

    def integer(self, low: int, high: int) -> int:
        """A number from ``low`` to ``high``, both included."""
        return low + int(self._uniform() * (high - low + 1))

    def scaled(self, low: int, high: int) -> int:
        """A number whose size is that of the level, from ``low`` to ``high`` for levels 1 to 3.

        Those three have a third of the range each; level 4 has the range of the same width above
        ``high``, level 5 the one above that, twice as wide. No two levels share a number.
        """
        width = high - low + 1
        ends = (0, width // 3, width * 2 // 3, width, 2 * width, 4 * width)
        return self.integer(low + ends[self._level - 1], low + ends[self._level] - 1)

    def nonzero(self, bound: int) -> int:
        """A number from -bound to bound other than 0."""
        return self.integer(1, bound) * self.sign()

    def sign(self) -> int:
        """1 or -1."""
        return self.choice((-1, 1))

    def digits(self) -> int:
        """A number of as many digits as the level says: 1 to 5 for levels 1 to 3, then up to 9."""
        least, most = ((1, 2), (3, 3), (4, 5), (6, 7), (8, 9))[self._level - 1]
        length = self.integer(least, most)
        return self.integer(10 ** (length - 1), 10**length - 1)

    def choice(self, options: Sequence[T]) -> T:
        """One of ``options``."""
        return options[int(self._uniform() * len(options))]

    def distinct(self, options: Sequence[T], count: int) -> list[T]:
        """``count`` different ones of ``options``, in random order."""
        left = list(options)
        return [left.pop(int(self._uniform() * len(left))) for _ in range(count)]
