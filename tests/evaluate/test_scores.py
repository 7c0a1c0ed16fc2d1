from __future__ import annotations

import math

import numpy as np
import pytest

from wrinklefree.errors import UserError
from wrinklefree.evaluate.scores import (
    domain_score,
    loss_variance,
    overall_score,
    recovered_share,
)


def test_loss_is_total_nats_over_total_tokens_and_not_a_mean_of_rows():
    found = domain_score([10.0, 2.0], [2, 8], [10, 30], "here")
    assert found.score.loss == pytest.approx(1.2)
    assert found.score.perplexity == pytest.approx(math.exp(1.2))
    assert found.score.bits_per_byte == pytest.approx(12.0 / math.log(2) / 40)
    assert (found.rows, found.tokens, found.bytes) == (2, 10, 40)


def test_standard_error_of_rows_of_equal_length_is_that_of_a_mean():
    means = np.random.default_rng(0).normal(3.0, 0.5, 23)
    found = domain_score((means * 7).tolist(), [7] * 23, [9] * 23, "here")
    assert found.score.loss_standard_error == pytest.approx(means.std(ddof=1) / math.sqrt(23))


def test_standard_error_of_rows_of_unequal_length_is_the_spread_of_repeated_samples():
    generator = np.random.default_rng(1)
    losses, errors = [], []
    for _ in range(2000):
        tokens = generator.integers(1, 60, 40)
        nats = tokens * generator.normal(3.0, 0.6, 40)
        score = domain_score(nats.tolist(), tokens.tolist(), [1] * 40, "here").score
        losses.append(score.loss)
        errors.append(score.loss_standard_error)
    assert np.mean(errors) == pytest.approx(np.std(losses), rel=0.06)


def test_rows_without_scored_tokens_are_no_rows():
    padded = domain_score([10.0, 0.0, 2.0], [2, 0, 8], [10, 0, 30], "here")
    assert padded == domain_score([10.0, 2.0], [2, 8], [10, 30], "here")


def test_one_row_has_no_standard_error_and_tokens_without_bytes_no_bits_per_byte():
    score = domain_score([3.0], [2], [0], "here").score
    assert score.loss_standard_error is None
    assert score.bits_per_byte is None


def test_perplexity_that_overflows_is_absent():
    assert domain_score([2000.0], [1], [1], "here").score.perplexity is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_that_is_not_finite_is_refused_with_its_place(bad: float):
    with pytest.raises(UserError, match="model x, domain y"):
        domain_score([1.0, bad], [1, 1], [1, 1], "model x, domain y")


def test_overall_is_weighted_by_the_mixture_and_not_by_held_out_tokens():
    domains = {
        "a": domain_score([10.0, 10.0], [10, 10], [40, 40], "a"),
        "b": domain_score([9.0, 11.0], [5, 5], [10, 10], "b"),
        "unweighted": domain_score([900.0], [1], [1], "c"),
    }
    overall = overall_score(domains, {"a": 0.75, "b": 0.25, "unweighted": 0.0})
    assert overall.loss == pytest.approx(0.75 * 1.0 + 0.25 * 2.0)
    assert overall.bits_per_byte == pytest.approx(1.25 / math.log(2) / (0.75 * 4 + 0.25 * 2))
    b_error = domains["b"].score.loss_standard_error
    assert b_error is not None
    assert overall.loss_standard_error == pytest.approx(0.25 * b_error)


def test_a_weighted_domain_that_was_not_scored_is_refused():
    domains = {"a": domain_score([1.0], [1], [1], "a")}
    with pytest.raises(UserError, match=r"domain b has weight 0\.5"):
        overall_score(domains, {"a": 0.5, "b": 0.5})


def test_variance_of_rows_is_that_of_every_token_by_itself_weighted_as_the_mixture():
    rows = {"a": ([8.0, 30.0], [10, 10]), "b": ([9.0, 11.0, 40.0], [5, 5, 10])}
    domains = {
        name: domain_score(nats, tokens, tokens, name) for name, (nats, tokens) in rows.items()
    }
    split = loss_variance(domains, {"a": 1.5, "b": 0.5, "absent": 0.0})
    values, weights = [], []
    for name, share in (("a", 0.75), ("b", 0.25)):
        for nats, tokens in zip(*rows[name], strict=True):
            values.append(nats / tokens)
            weights.append(share * tokens / sum(rows[name][1]))
    mean = np.average(values, weights=weights)
    total = np.average((np.array(values) - mean) ** 2, weights=weights)
    assert split.total == pytest.approx(total, rel=1e-12)
    means = {"a": 1.9, "b": 3.0}
    assert split.between == pytest.approx(0.75 * 0.25 * (means["a"] - means["b"]) ** 2)
    assert domains["a"].loss_variance == pytest.approx(1.1**2)


def test_recovered_share_is_zero_at_naive_and_one_at_the_base():
    assert recovered_share(9.0, naive=9.0, base=3.0) == 0.0
    assert recovered_share(3.0, naive=9.0, base=3.0) == 1.0
    assert recovered_share(4.5, naive=9.0, base=3.0) == pytest.approx(0.75)
    assert recovered_share(10.0, naive=3.0, base=3.0) is None
