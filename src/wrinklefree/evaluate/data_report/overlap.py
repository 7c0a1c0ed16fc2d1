"""Texts that are there more than once: within a source, between sources, in both splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np


class SharedTexts(NamedTuple):
    """Two sources whose training splits have texts in common."""

    first: str
    second: str
    texts: int
    """Different texts that both have."""


@dataclass(frozen=True)
class Overlaps:
    """Repetitions of whole texts."""

    repeated: dict[str, int]
    """By source: training documents whose text came before in the same source."""
    between: list[SharedTexts]
    """Pairs of sources that share a training text."""
    held_out_in_training: dict[str, int]
    """By source: held-out documents whose text some source trains on."""


def find_overlaps(train: Mapping[str, np.ndarray], held_out: Mapping[str, np.ndarray]) -> Overlaps:
    """``train`` and ``held_out``: digests of the texts of each source, [documents], any order."""
    texts = {name: np.unique(digests) for name, digests in train.items()}
    shared = [
        SharedTexts(one, other, len(np.intersect1d(texts[one], texts[other], assume_unique=True)))
        for one, other in combinations(sorted(texts), 2)
    ]
    return Overlaps(
        repeated={name: len(train[name]) - len(texts[name]) for name in train},
        between=[pair for pair in shared if pair.texts],
        held_out_in_training={
            name: int(np.any([np.isin(digests, seen) for seen in texts.values()], axis=0).sum())
            for name, digests in held_out.items()
        },
    )
