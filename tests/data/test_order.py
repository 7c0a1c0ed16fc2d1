from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.data.order import (
    BLOCK_SAMPLES,
    DomainSize,
    SampleOrder,
    keyed_permutation,
    row_shares,
)

DOMAINS = (
    DomainSize("code", weight=0.5, rows=97, tokens=97 * 60),
    DomainSize("left_out", weight=0.0, rows=0, tokens=0),
    DomainSize("maths", weight=0.2, rows=1013, tokens=1013 * 45),
    DomainSize("web", weight=0.3, rows=311, tokens=311 * 63),
)


def located(order: SampleOrder, samples: range) -> list[tuple[int, int]]:
    return list(zip(*(a.tolist() for a in order.locate(np.array(samples))), strict=True))


@pytest.mark.parametrize("buffer", [1, 10, 100_000])
def test_every_epoch_of_a_domain_has_every_row_once(buffer: int) -> None:
    order = SampleOrder(DOMAINS, buffer, seed=3)
    samples = located(order, range(8000))
    for index, domain in enumerate(DOMAINS):
        rows = [row for d, row in samples if d == index]
        for start in range(0, len(rows) - domain.rows + 1, max(domain.rows, 1)):
            assert sorted(rows[start : start + domain.rows]) == list(range(domain.rows))
    assert {d for d, _ in samples} == {0, 2, 3}


def test_token_shares_are_the_weights() -> None:
    order = SampleOrder(DOMAINS, 50, seed=1)
    samples = 200 * BLOCK_SAMPLES
    counts = Counter(order.locate(np.arange(samples))[0].tolist())
    tokens = [counts[i] * d.tokens / max(d.rows, 1) for i, d in enumerate(DOMAINS)]
    for domain, count in zip(DOMAINS, tokens, strict=True):
        assert count / sum(tokens) == pytest.approx(domain.weight, abs=0.001)


WEIGHTS = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1.0)), min_size=1, max_size=9).filter(
    lambda weights: sum(weights) > 0
)


@settings(max_examples=100, deadline=None)
@given(weights=WEIGHTS, sample=st.integers(0, 10**12))
def test_counts_never_shrink_add_up_and_stay_within_a_few_rows_of_the_share(
    weights: list[float], sample: int
) -> None:
    shares = np.array(weights) / sum(weights)
    order = SampleOrder(
        [DomainSize(f"d{n}", float(w), 10, 640) for n, w in enumerate(shares)], 8, seed=0
    )
    before, after = order.counts_before(sample), order.counts_before(sample + 1)
    assert sum(before) == sample
    assert sorted(b - a for a, b in zip(before, after, strict=True)) == [0] * (len(shares) - 1) + [
        1
    ]
    assert np.abs(np.array(before) - shares * sample).max() < 10
    assert all(count == 0 for count, share in zip(before, shares, strict=True) if share == 0)


def test_domain_with_half_empty_rows_gets_twice_the_rows() -> None:
    assert row_shares([0.5, 0.5, 0.0], [10, 10, 0], [1000, 500, 0]) == pytest.approx(
        [1 / 3, 2 / 3, 0]
    )


def test_each_sample_is_the_same_however_it_is_asked_for() -> None:
    whole = located(SampleOrder(DOMAINS, 50, seed=9), range(3000))
    fresh = SampleOrder(DOMAINS, 50, seed=9)
    some = np.random.default_rng(2).permutation(3000)[:500]
    domains, rows = fresh.locate(some)
    assert [whole[s] for s in some] == list(zip(domains.tolist(), rows.tolist(), strict=True))


def test_seed_weights_and_buffer_each_change_the_order() -> None:
    base = located(SampleOrder(DOMAINS, 50, seed=9), range(600))
    swapped = [
        DomainSize(d.name, w, d.rows, d.tokens)
        for d, w in zip(DOMAINS, (0.3, 0.0, 0.2, 0.5), strict=True)
    ]
    assert located(SampleOrder(DOMAINS, 50, seed=10), range(600)) != base
    assert located(SampleOrder(swapped, 50, seed=9), range(600)) != base
    assert located(SampleOrder(DOMAINS, 51, seed=9), range(600)) != base


def test_buffer_bounds_how_far_rows_move() -> None:
    samples = located(SampleOrder(DOMAINS, 20, seed=4), range(2000))
    for index in (0, 2, 3):
        rows = [row for d, row in samples if d == index][: DOMAINS[index].rows]
        assert all(row // 20 == n // 20 for n, row in enumerate(rows))
        assert rows != sorted(rows)
    samples = located(SampleOrder(DOMAINS, 1, seed=4), range(2000))
    rows = [row for d, row in samples if d == 2]
    assert rows == [n % 1013 for n in range(len(rows))]


def test_epochs_differ() -> None:
    rows = [r for d, r in located(SampleOrder(DOMAINS, 1000, seed=4), range(2000)) if d == 0]
    assert rows[:97] != rows[97:194]


def test_domains_are_mixed_within_a_block() -> None:
    domains = SampleOrder(DOMAINS, 1, seed=0).locate(np.arange(BLOCK_SAMPLES))[0]
    assert (np.diff(domains) != 0).sum() > BLOCK_SAMPLES / 3


def test_permutation_is_written_down_and_uniform() -> None:
    assert keyed_permutation(6, 1, "a", 2).tolist() == [0, 5, 2, 1, 3, 4]
    counts = Counter(tuple(keyed_permutation(3, "uniform", n).tolist()) for n in range(6000))
    assert len(counts) == 6
    assert max(abs(count - 1000) for count in counts.values()) < 150
