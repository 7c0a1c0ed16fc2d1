"""Easy rows first: the rows that a run reads anyway, sorted within domain and epoch.

A curriculum changes neither which rows a run of a given length reads nor which domain each of its
samples is from, so it can be compared with the shuffled order, and the shares stay what they are.
Where a run reads a domain more than once, each epoch is sorted by itself. Shapes: B samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wrinklefree.mixture.order import SampleOrder
from wrinklefree.mixture.rows import Rows


class EasyFirst:
    """The order of a run of ``samples`` samples, as ``SampleOrder.locate`` gives it.

    ``scores``: difficulty by domain and row, float64 [rows of the domain that the run reads],
    parallel to :func:`rows_of_run`. Rows of equal difficulty stay in shuffled order.
    """

    def __init__(self, order: SampleOrder, samples: int, scores: Sequence[np.ndarray]) -> None:
        self._order = order
        self._samples = samples
        self._rows: list[np.ndarray] = []
        sizes = [domain.rows for domain in order.domains]
        for read, score, size in zip(order.rows_before(samples), scores, sizes, strict=True):
            known = np.unique(read)
            assert score.shape == known.shape and np.isfinite(score).all()
            for first in range(0, len(read), max(size, 1)):
                epoch = read[first : first + size]
                easy_first = np.argsort(score[np.searchsorted(known, epoch)], kind="stable")
                read[first : first + size] = epoch[easy_first]
            self._rows.append(read)

    def locate(self, samples_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(domain index, row within the domain) of each sample number, int64 [B] each."""
        assert samples_B.max(initial=0) < self._samples, "a curriculum ends with its run"
        domain_B, ordinal_B = self._order.ordinals(samples_B)
        row_B = [self._rows[d][n] for d, n in zip(domain_B, ordinal_B, strict=True)]
        return domain_B, np.array(row_B, dtype=np.int64)


def rows_of_run(order: SampleOrder, samples: int) -> list[np.ndarray]:
    """The rows of each domain that the first ``samples`` samples read, each once, ascending."""
    return [np.unique(rows) for rows in order.rows_before(samples)]


def mean_piece_lengths(rows: Rows, chosen: np.ndarray) -> np.ndarray:
    """Tokens in the document piece that a row's mean token is in, float64 [chosen]."""
    lengths = [rows.pieces_of(row)["length"].astype(np.float64) for row in chosen.tolist()]
    return np.array([(length**2).sum() / length.sum() for length in lengths])
