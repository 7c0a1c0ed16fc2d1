"""How long documents are, in tokens: a histogram whose bins double."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

LARGEST_BIN = 48


@dataclass(frozen=True)
class Lengths:
    """Lengths of the documents of a domain, their end of text included."""

    documents: np.ndarray
    """int64 [bins]: how many have 2**bin to 2**(bin + 1) - 1 tokens."""
    tokens: np.ndarray
    """int64 [bins]: how many tokens they have together."""
    longest: int

    def as_json(self) -> dict[str, Any]:
        """``lengths`` of a domain in ``report.json``; empty bins are left out."""
        documents, tokens = int(self.documents.sum()), int(self.tokens.sum())
        return {
            "mean": tokens / documents if documents else None,
            "longest": self.longest,
            "bins": {
                str(1 << int(index)): {
                    "documents": int(self.documents[index]),
                    "tokens": int(self.tokens[index]),
                }
                for index in np.flatnonzero(self.documents)
            },
        }


def document_lengths(ends: Iterable[np.ndarray]) -> Lengths:
    """``ends``: of every shard the ends of its documents, uint64, from 0 within the shard."""
    documents = np.zeros(LARGEST_BIN, dtype=np.int64)
    tokens = np.zeros(LARGEST_BIN, dtype=np.int64)
    longest = 0
    for of_shard in ends:
        lengths = np.diff(of_shard.astype(np.int64), prepend=0)
        bins = np.frexp(lengths)[1] - 1
        documents += np.bincount(bins, minlength=LARGEST_BIN)
        # Weights are summed as float64: exact for fewer than 2**53 tokens.
        tokens += np.bincount(bins, lengths, minlength=LARGEST_BIN).astype(np.int64)
        longest = max(longest, int(lengths.max(initial=0)))
    return Lengths(documents, tokens, longest)
