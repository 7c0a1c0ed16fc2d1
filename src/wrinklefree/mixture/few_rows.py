"""Small sets of rows on which a stage calibrates or measures something."""

from __future__ import annotations

from collections.abc import Iterator

from wrinklefree.mixture.batch import Batch
from wrinklefree.mixture.loader import HeldOutData, TrainingData

ROWS_AT_A_TIME = 8
"""Rows of a batch: bounds memory and changes nothing else."""


def first_training_rows(
    data: TrainingData, rows: int, batch_size: int = ROWS_AT_A_TIME
) -> Iterator[Batch]:
    """The first ``rows`` rows that a training with this seed sees; the last batch may be short."""
    chosen = data.batch(0, 0, batch_size=rows, micro_batches=1)
    for start in range(0, rows, batch_size):
        part = slice(start, start + batch_size)
        yield Batch(**{name: tensor[part] for name, tensor in vars(chosen).items()})


def spread_held_out_rows(data: HeldOutData, rows: int) -> Iterator[Batch]:
    """``rows`` held-out rows, equally many of every domain, or all rows if there are fewer.

    A domain that has fewer than its share leaves the rest to the others. Within a domain the rows
    are spread evenly over all it has.
    """
    left = rows
    smallest_first = sorted(data.domains, key=lambda domain: data.rows[domain])
    for number, domain in enumerate(smallest_first):
        share = min(data.rows[domain], left // (len(smallest_first) - number))
        left -= share
        yield from data.batches(domain, rows=share, batch_size=ROWS_AT_A_TIME)
