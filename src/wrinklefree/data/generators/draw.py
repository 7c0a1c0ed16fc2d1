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


class Draw:
    """Choices keyed by any number of strings and integers.

    Built on ``random.Random.random`` alone, the one method whose sequence Python promises to keep.
    """

    def __init__(self, *key: str | int) -> None:
        digest = hashlib.sha256(repr(key).encode()).digest()
        self._uniform = random.Random(int.from_bytes(digest, "big")).random

    def integer(self, low: int, high: int) -> int:
        """A number from ``low`` to ``high``, both included."""
        return low + int(self._uniform() * (high - low + 1))

    def nonzero(self, bound: int) -> int:
        """A number from -bound to bound other than 0."""
        return self.integer(1, bound) * self.choice((-1, 1))

    def digits(self, most: int) -> int:
        """A number of 1 to ``most`` digits, each length equally likely, at least 1."""
        length = self.integer(1, most)
        return self.integer(10 ** (length - 1), 10**length - 1)

    def choice(self, options: Sequence[T]) -> T:
        """One of ``options``."""
        return options[int(self._uniform() * len(options))]

    def distinct(self, options: Sequence[T], count: int) -> list[T]:
        """``count`` different ones of ``options``, in random order."""
        left = list(options)
        return [left.pop(int(self._uniform() * len(left))) for _ in range(count)]
