from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.stability.loss_variance import VarianceSplit, split_variance

ROWS = st.lists(
    st.tuples(st.floats(0.0, 20.0), st.integers(0, 500), st.integers(0, 4)), min_size=1, max_size=40
).filter(lambda rows: any(tokens for _, tokens, _ in rows))


def split_of(rows: list[tuple[float, int, int]]) -> VarianceSplit:
    loss, tokens, domain = (np.array(column) for column in zip(*rows, strict=True))
    return split_variance(loss, tokens, domain)


def test_two_domains_of_known_spread_are_split_as_on_paper():
    # Domain 0: losses 1 and 3, mean 2, variance 1; domain 1: 6 and 6. Weights 1/2 and 1/2, mean 4.
    split = split_of([(1.0, 10, 0), (3.0, 10, 0), (6.0, 5, 1), (6.0, 15, 1)])
    assert split == VarianceSplit(within=0.5, between=4.0)
    assert split.as_json() == {
        "total": 4.5, "within": 0.5, "between": 4.0, "between_share": pytest.approx(8 / 9)
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_the_parts_are_the_weighted_variances_by_definition(rows: list[tuple[float, int, int]]):
    """The slow way: every token is a value of its own."""
    split = split_of(rows)
    values = {d: [v for v, n, of in rows if of == d for _ in range(n)] for d in range(5)}
    tokens = [value for chosen in values.values() for value in chosen]
    within = math.fsum(len(v) / len(tokens) * np.var(v) for v in values.values() if v)
    assert split.total == pytest.approx(np.var(tokens), rel=1e-9, abs=1e-9)
    assert split.within == pytest.approx(within, rel=1e-9, abs=1e-9)
    assert split.within + split.between == split.total


def test_rows_without_tokens_and_the_unit_of_the_weights_do_not_matter():
    rows = [(1.0, 10, 0), (3.0, 30, 0), (6.0, 5, 3)]
    split = split_of([*rows, (math.nan, 0, 1), (math.nan, 0, 3)])
    assert split == split_of(rows)
    scaled = split_of([(loss, 3 * tokens, domain) for loss, tokens, domain in rows])
    assert scaled.within == pytest.approx(split.within)
    assert scaled.between == pytest.approx(split.between)


def test_one_domain_has_nothing_between_and_one_row_no_variance_at_all():
    assert split_of([(1.0, 10, 2), (3.0, 10, 2)]) == VarianceSplit(within=1.0, between=0.0)
    alone = split_of([(3.0, 7, 1)])
    assert alone == VarianceSplit(0.0, 0.0)
    assert alone.between_share is None


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_gives_no_number(bad: float):
    assert math.isnan(split_of([(bad, 10, 0), (3.0, 10, 0)]).total)


def test_few_rows_of_a_domain_move_variance_from_within_to_between_as_documented():
    generator = np.random.default_rng(0)
    domains, rows = 5, 20
    domain_B = np.repeat(np.arange(domains), rows // domains)
    splits = [
        split_variance(generator.normal(3.0, 1.0, rows), np.ones(rows), domain_B)
        for _ in range(2000)
    ]
    between = np.mean([split.between for split in splits])
    assert between == pytest.approx((domains - 1) / rows, rel=0.05)
