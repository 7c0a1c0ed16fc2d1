from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.mixture.curriculum import EasyFirst, rows_of_run
from wrinklefree.mixture.order import DomainSize, SampleOrder, WeightChange

DOMAINS = [
    DomainSize("a", rows=40, tokens=40 * 50),
    DomainSize("b", rows=300, tokens=300 * 60),
    DomainSize("none", rows=0, tokens=0),
]


def shuffled(seed: int, change_at: int) -> SampleOrder:
    changes = [
        WeightChange(0, {"a": 0.4, "b": 0.6, "none": 0.0}),
        WeightChange(change_at, {"a": 0.7, "b": 0.3, "none": 0.0}),
    ]
    return SampleOrder(DOMAINS, changes, shuffle_buffer_size=64, seed=seed)


def difficulty(order: SampleOrder, samples: int, seed: int) -> list[np.ndarray]:
    """Scores with many ties."""
    random = np.random.default_rng(seed)
    return [random.integers(0, 6, len(rows)) / 2 for rows in rows_of_run(order, samples)]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99),
    change_at=st.integers(1, 500),
    samples=st.integers(1, 700),
    data=st.data(),
)
def test_the_same_rows_of_the_same_domains_easy_first_within_each_epoch(
    seed: int, change_at: int, samples: int, data: st.DataObject
) -> None:
    plain = shuffled(seed, change_at)
    scores = difficulty(plain, samples, seed)
    run = np.arange(samples)
    domains, rows = plain.locate(run)
    easy_domains, easy_rows = EasyFirst(plain, samples, scores).locate(run)
    assert easy_domains.tolist() == domains.tolist()
    assert Counter(zip(domains, easy_rows, strict=True)) == Counter(zip(domains, rows, strict=True))
    for index, known in enumerate(rows_of_run(plain, samples)):
        mine, before = easy_rows[domains == index], rows[domains == index]
        for start in range(0, len(mine), max(DOMAINS[index].rows, 1)):
            epoch = slice(start, start + DOMAINS[index].rows)
            assert sorted(mine[epoch]) == sorted(before[epoch]), "an epoch keeps its rows"
            by_score = dict(zip(known.tolist(), scores[index].tolist(), strict=True))
            # Python's sort is stable: rows of equal score stay in shuffled order.
            expected = sorted(before[epoch].tolist(), key=lambda row: by_score[row])
            assert mine[epoch].tolist() == expected
    at = data.draw(st.integers(0, samples - 1))
    resumed = EasyFirst(shuffled(seed, change_at), samples, scores)
    assert resumed.locate(run[at:])[1].tolist() == easy_rows[at:].tolist()


def test_a_curriculum_ends_with_its_run() -> None:
    plain = shuffled(1, 50)
    easy = EasyFirst(plain, 100, difficulty(plain, 100, 1))
    easy.locate(np.arange(100))
    with pytest.raises(AssertionError, match="ends with its run"):
        easy.locate(np.arange(101))
