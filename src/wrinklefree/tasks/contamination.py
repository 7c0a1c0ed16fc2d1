"""How much of a benchmark stands in the training text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from wrinklefree.text.clean.ngrams import HashIndex, ngram_hashes

WORDS = 8
COMMON_SHARE = 0.7
"""Of a question's 8-grams: if so many stand in the text, it is contaminated (arXiv 2204.02311)."""


def contaminated(questions: Mapping[str, list[list[str]]], texts: Iterable[str]) -> dict[str, int]:
    """How many of the questions of each task have ``COMMON_SHARE`` of their 8-grams in ``texts``.

    Words are compared as in cleaning. A question is a list of passages, and an 8-gram is part of
    one; a question whose passages have fewer than eight words each is never counted. Memory holds
    the questions, not the texts.
    """
    asked = {task: [_ngrams(passages) for passages in found] for task, found in questions.items()}
    every = [ngrams_G for found in asked.values() for ngrams_G in found]
    index = HashIndex(np.unique(np.concatenate([np.empty(0, np.uint64), *every])))
    seen = np.zeros(len(index.hashes), dtype=bool)
    for text in texts:
        seen[index.find(ngram_hashes([text], WORDS)[0])[1]] = True
    return {
        task: sum(
            len(own_G) > 0 and bool(seen[index.find(own_G)[1]].mean() >= COMMON_SHARE)
            for own_G in found
        )
        for task, found in asked.items()
    }


def _ngrams(passages: list[str]) -> np.ndarray:
    """Hashes of the different 8-grams, uint64 [G]; none of a shorter passage."""
    long_enough = [text for text in passages if len(ngram_hashes([text], 1)[0]) >= WORDS]
    return np.unique(ngram_hashes(long_enough, WORDS)[0])
