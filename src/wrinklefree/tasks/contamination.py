"""How much of a benchmark stands in the training text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

WORDS = 8
COMMON_SHARE = 0.7
"""Of a question's 8-grams: if so many stand in the text, it is contaminated (arXiv 2204.02311)."""
_WORD = re.compile(r"\w+")

Ngram = tuple[str, ...]


def contaminated(questions: Mapping[str, list[str]], texts: Iterable[str]) -> dict[str, int]:
    """How many of the questions of each task have ``COMMON_SHARE`` of their 8-grams in ``texts``.

    Words are compared in lower case, without what stands between them. A question of fewer than
    eight words is never counted. Memory holds the questions, not the texts.
    """
    asked = {task: [_ngrams(text) for text in texts_] for task, texts_ in questions.items()}
    wanted = {ngram for found in asked.values() for ngrams in found for ngram in ngrams}
    seen: set[Ngram] = set()
    if wanted:
        for text in texts:
            seen |= wanted & _ngrams(text)
    return {
        task: sum(bool(own) and len(own & seen) >= COMMON_SHARE * len(own) for own in found)
        for task, found in asked.items()
    }


def _ngrams(text: str) -> set[Ngram]:
    words = _WORD.findall(text.lower())
    return set(zip(*(words[start:] for start in range(WORDS)), strict=False))
