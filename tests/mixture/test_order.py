from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.mixture.order import (
    BLOCK_SAMPLES,
    DomainSize,
    SampleOrder,
    WeightChange,
    apportion,
    keyed_permutation,
    nested_splits,
    row_shares,
)

DOMAINS = (
    DomainSize("code", rows=97, tokens=97 * 60),
    DomainSize("left_out", rows=0, tokens=0),
    DomainSize("maths", rows=1013, tokens=1013 * 45),
    DomainSize("web", rows=311, tokens=311 * 63),
)
WEIGHTS = {"code": 0.5, "left_out": 0.0, "maths": 0.2, "web": 0.3}
LATER = {"code": 0.0, "left_out": 0.0, "maths": 0.9, "web": 0.1}


def order(
    *changes: WeightChange, buffer: int = 50, seed: int = 9, weights: dict[str, float] = WEIGHTS
) -> SampleOrder:
    starting = WeightChange(0, weights)
    return SampleOrder(DOMAINS, [starting, *changes], shuffle_buffer_size=buffer, seed=seed)


def located(order: SampleOrder, samples: range) -> list[tuple[int, int]]:
    return list(zip(*(a.tolist() for a in order.locate(np.array(samples))), strict=True))


@pytest.mark.parametrize("buffer", [1, 10, 100_000])
@pytest.mark.parametrize("changes", [[], [WeightChange(777, LATER)]], ids=["constant", "changed"])
def test_every_epoch_of_a_domain_has_every_row_once(
    buffer: int, changes: list[WeightChange]
) -> None:
    samples = located(order(*changes, buffer=buffer, seed=3), range(8000))
    for index, domain in enumerate(DOMAINS):
        rows = [row for d, row in samples if d == index]
        for start in range(0, len(rows) - domain.rows + 1, max(domain.rows, 1)):
            assert sorted(rows[start : start + domain.rows]) == list(range(domain.rows))
    assert {d for d, _ in samples} == {0, 2, 3}


def test_the_order_of_a_mixture_stays_what_it_is() -> None:
    """Over a change of weights, several windows of the buffer and epochs of a small domain."""
    found = located(order(WeightChange(40, LATER), buffer=10, seed=9), range(0, 240, 9))
    assert found == [
        (0, 3), (0, 8), (2, 9), (3, 5), (2, 2), (2, 16), (2, 22), (2, 33), (2, 42), (2, 49),
        (2, 52), (2, 61), (2, 72), (3, 19), (2, 91), (2, 96), (2, 102), (2, 116), (2, 129),
        (3, 25), (2, 134), (2, 140), (2, 156), (2, 163), (2, 171), (2, 189), (2, 193),
    ]  # fmt: skip


def test_token_shares_are_the_weights() -> None:
    samples = 800 * BLOCK_SAMPLES
    counts = Counter(order(seed=1).locate(np.arange(samples))[0].tolist())
    tokens = [counts[i] * d.tokens / max(d.rows, 1) for i, d in enumerate(DOMAINS)]
    for domain, count in zip(DOMAINS, tokens, strict=True):
        assert count / sum(tokens) == pytest.approx(WEIGHTS[domain.name], abs=0.001)


SHARES = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1.0)), min_size=1, max_size=9).filter(
    lambda weights: sum(weights) > 0
)


@settings(max_examples=100, deadline=None)
@given(weights=SHARES, sample=st.integers(0, 10**12))
def test_counts_never_shrink_add_up_and_stay_within_a_few_rows_of_the_share(
    weights: list[float], sample: int
) -> None:
    shares = np.array(weights) / sum(weights)
    splits = nested_splits(shares.tolist())
    before, after = apportion(sample, splits), apportion(sample + 1, splits)
    assert sum(before) == sample
    gained = sorted(b - a for a, b in zip(before, after, strict=True))
    assert gained == [0] * (len(shares) - 1) + [1]
    assert np.abs(np.array(before) - shares * sample).max() < 10
    assert all(count == 0 for count, share in zip(before, shares, strict=True) if share == 0)


ANY_ORDER = st.tuples(
    st.lists(
        st.tuples(st.integers(1, 30_000), st.lists(st.integers(0, 20), min_size=3, max_size=3)),
        min_size=1,
        max_size=4,
        unique_by=lambda change: change[0],
    ),
    st.lists(st.tuples(st.integers(1, 400), st.integers(10, 64)), min_size=3, max_size=3),
    st.integers(1, 500),
    st.integers(0, 2**32),
)


def any_order(
    case: tuple[list[tuple[int, list[int]]], list[tuple[int, int]], int, int],
) -> SampleOrder:
    """Three domains, one to four sets of weights, all drawn by hypothesis."""
    drawn, sizes, buffer, seed = case
    changes = []
    for number, (first, parts) in enumerate(sorted(drawn)):
        parts = parts if sum(parts) else [1, 0, 2]
        weights = {f"d{n}": part / sum(parts) for n, part in enumerate(parts)}
        changes.append(WeightChange(first if number else 0, weights))
    domains = [DomainSize(f"d{n}", rows, rows * tokens) for n, (rows, tokens) in enumerate(sizes)]
    return SampleOrder(domains, changes, shuffle_buffer_size=buffer, seed=seed)


@settings(max_examples=40, deadline=None)
@given(case=ANY_ORDER, start=st.integers(0, 60_000))
def test_counts_are_those_of_the_samples_and_shares_of_a_phase_are_its_weights(
    case: tuple, start: int
) -> None:
    mixed = any_order(case)
    starts = [change.first_sample for change in mixed.changes]
    for change, end in zip(mixed.changes, [*starts[1:], starts[-1] + 20_000], strict=True):
        counts = np.diff([mixed.counts_before(n) for n in (change.first_sample, end)], axis=0)[0]
        tokens = [n * d.tokens / d.rows for n, d in zip(counts, mixed.domains, strict=True)]
        weights = [change.weights[d.name] for d in mixed.domains]
        slack = max(0.001, 20 / (end - change.first_sample))
        shares = np.array(tokens) / sum(tokens)
        assert shares == pytest.approx(weights, abs=slack)
        assert all(n == 0 for n, weight in zip(counts, weights, strict=True) if weight == 0)
    domains, _ = mixed.ordinals(np.arange(start, start + 200))
    counted = np.array(mixed.counts_before(start)) + np.bincount(domains, minlength=3)
    assert counted.tolist() == mixed.counts_before(start + 200)


@settings(max_examples=40, deadline=None)
@given(case=ANY_ORDER, start=st.integers(0, 31_000))
def test_ordinals_of_a_domain_go_on_across_changes_and_rows_follow_them(
    case: tuple, start: int
) -> None:
    mixed, number = any_order(case), 300
    domains, ordinals = mixed.ordinals(np.arange(start, start + number))
    _, rows = mixed.locate(np.arange(start, start + number))
    before, read = mixed.counts_before(start), mixed.rows_before(start + number)
    for index, count in enumerate(before):
        mine = domains == index
        assert ordinals[mine].tolist() == list(range(count, count + int(mine.sum())))
        assert rows[mine].tolist() == read[index][ordinals[mine]].tolist()


@settings(max_examples=40, deadline=None)
@given(case=ANY_ORDER, data=st.data())
def test_any_number_of_ranks_and_any_resumed_run_read_the_same_samples(
    case: tuple, data: st.DataObject
) -> None:
    size, micro_batches, steps = (data.draw(st.integers(1, most)) for most in (4, 12, 6))
    first = data.draw(st.integers(0, 40_000 // (size * micro_batches)))
    step_samples = size * micro_batches
    samples = range(first * step_samples, (first + steps) * step_samples)
    whole = located(any_order(case), samples)
    for ranks in (1, 2, 3, 4):
        read: dict[int, tuple[int, int]] = {}
        for rank in range(ranks):
            own = any_order(case)
            # A rank has the micro-batches of its number, and meets the steps from the first on.
            for step in range(first, first + steps):
                for micro in range(rank, micro_batches, ranks):
                    at = (step * micro_batches + micro) * size
                    mine = range(at, at + size)
                    read |= dict(zip(mine, located(own, mine), strict=True))
        assert [read[sample] for sample in samples] == whole
    at = data.draw(st.integers(samples.start, samples.stop - 1))
    assert located(any_order(case), range(at, samples.stop)) == whole[at - samples.start :]


@pytest.mark.parametrize("first", [1, 63, 64, 640, 700])
def test_a_change_affects_no_sample_before_it_and_all_after_it(first: int) -> None:
    constant, changed = order(), order(WeightChange(first, LATER))
    assert located(changed, range(first)) == located(constant, range(first))
    later = [d for d, _ in located(changed, range(first, first + 640))]
    assert later.count(0) == 0
    assert later.count(2) / 640 == pytest.approx(0.92, abs=0.02)


@pytest.mark.parametrize("starts", [(50, 5), (5, 5)])
def test_changes_are_in_order(starts: tuple[int, int]) -> None:
    with pytest.raises(AssertionError):
        order(*(WeightChange(start, LATER) for start in starts))


def test_a_change_to_the_same_weights_keeps_the_shares() -> None:
    changed = order(*(WeightChange(first, WEIGHTS) for first in range(100, 30_000, 100)))
    for a, b in zip(changed.counts_before(30_000), order().counts_before(30_000), strict=True):
        assert abs(a - b) < 300


def test_domain_with_half_empty_rows_gets_twice_the_rows() -> None:
    assert row_shares([0.5, 0.5, 0.0], [10, 10, 0], [1000, 500, 0]) == pytest.approx(
        [1 / 3, 2 / 3, 0]
    )


def test_each_sample_is_the_same_however_it_is_asked_for() -> None:
    whole = located(order(), range(3000))
    some = np.random.default_rng(2).permutation(3000)[:500]
    domains, rows = order().locate(some)
    assert [whole[s] for s in some] == list(zip(domains.tolist(), rows.tolist(), strict=True))


def test_seed_weights_and_buffer_each_change_the_order() -> None:
    base = located(order(), range(600))
    assert located(order(seed=10), range(600)) != base
    assert located(order(weights=LATER), range(600)) != base
    assert located(order(buffer=51), range(600)) != base


def test_buffer_bounds_how_far_rows_move() -> None:
    samples = located(order(buffer=20, seed=4), range(2000))
    for index in (0, 2, 3):
        rows = [row for d, row in samples if d == index][: DOMAINS[index].rows]
        assert all(row // 20 == n // 20 for n, row in enumerate(rows))
        assert rows != sorted(rows)
    rows = [row for d, row in located(order(buffer=1, seed=4), range(2000)) if d == 2]
    assert rows == [n % 1013 for n in range(len(rows))]


def test_epochs_differ() -> None:
    rows = [r for d, r in located(order(buffer=1000, seed=4), range(2000)) if d == 0]
    assert rows[:97] != rows[97:194]


def test_domains_are_mixed_within_a_block() -> None:
    domains = order(buffer=1, seed=0).locate(np.arange(80 * BLOCK_SAMPLES))[0]
    assert sum(a != b for a, b in pairwise(domains)) > 80 * BLOCK_SAMPLES / 3
    blocks = {tuple(block) for block in domains.reshape(-1, BLOCK_SAMPLES).tolist()}
    assert len(blocks) > 40, "blocks of the same domains are in different orders"


@pytest.mark.parametrize("rows", [8, 16, 24, 512])
def test_steps_of_whole_blocks_hold_every_share_to_a_row(rows: int) -> None:
    counts = counts_per_step(rows)
    expected = counts.mean(axis=0)
    assert np.abs(counts - expected).max() < 2
    assert counts.var(axis=0).max() < 0.5, "rows², however many rows a step has"


def test_steps_of_other_sizes_are_left_less_to_chance_than_independent_draws() -> None:
    counts = counts_per_step(12)
    shares = counts.mean(axis=0) / 12
    assert (counts.var(axis=0) <= 0.4 * 12 * shares * (1 - shares)).all()


def counts_per_step(rows: int) -> np.ndarray:
    """Rows of each domain in 1,000 steps, [1000, D]."""
    domains = order(seed=2).locate(np.arange(1000 * rows))[0].reshape(1000, rows)
    return np.stack([(domains == index).sum(axis=1) for index in range(len(DOMAINS))], axis=1)


def test_permutation_is_written_down_and_uniform() -> None:
    assert keyed_permutation(6, 1, "a", 2).tolist() == [0, 5, 2, 1, 3, 4]
    counts = Counter(tuple(keyed_permutation(3, "uniform", n).tolist()) for n in range(6000))
    assert len(counts) == 6
    assert max(abs(count - 1000) for count in counts.values()) < 150
