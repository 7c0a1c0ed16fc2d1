from __future__ import annotations

import math

import numpy as np
import pytest

from wrinklefree.errors import UserError
from wrinklefree.evaluate.scores import (
    DomainScore,
    HeldOutScores,
    ScoreSums,
    domain_score,
    loss_variance,
    overall_score,
    recovered_share,
)


def score_of(nats: list[float], tokens: list[int], count_bytes: list[int]) -> DomainScore:
    """Of rows that are a document each."""
    sums = ScoreSums(nats, tokens, count_bytes)
    return domain_score(HeldOutScores(rows=sums, documents=sums), "here")


def test_loss_is_total_nats_over_total_tokens_and_not_a_mean_of_rows():
    found = score_of([10.0, 2.0], [2, 8], [10, 30])
    assert found.score.loss == pytest.approx(1.2)
    assert found.score.perplexity == pytest.approx(math.exp(1.2))
    assert found.score.bits_per_byte == pytest.approx(12.0 / math.log(2) / 40)
    assert (found.rows, found.documents, found.tokens, found.bytes) == (2, 2, 10, 40)


def test_standard_error_of_rows_of_equal_length_is_that_of_a_mean():
    means = np.random.default_rng(0).normal(3.0, 0.5, 23)
    found = score_of((means * 7).tolist(), [7] * 23, [9] * 23)
    assert found.score.loss_standard_error == pytest.approx(means.std(ddof=1) / math.sqrt(23))


def test_standard_error_of_rows_of_unequal_length_is_the_spread_of_repeated_samples():
    generator = np.random.default_rng(1)
    losses, errors = [], []
    for _ in range(2000):
        tokens = generator.integers(1, 60, 40)
        nats = tokens * generator.normal(3.0, 0.6, 40)
        score = score_of(nats.tolist(), tokens.tolist(), [1] * 40).score
        losses.append(score.loss)
        errors.append(score.loss_standard_error)
    assert np.mean(errors) == pytest.approx(np.std(losses), rel=0.06)


def test_the_standard_error_is_over_documents_however_many_rows_they_fill():
    generator = np.random.default_rng(2)
    losses, errors, of_rows = [], [], []
    for _ in range(1000):
        # Documents of 1 to 4 rows, each with a loss of its own that all its rows share.
        rows_N = generator.integers(1, 5, 30)
        nats_N = generator.normal(3.0, 0.6, 30) * rows_N * 7
        documents = ScoreSums(nats_N.tolist(), (rows_N * 7).tolist(), [1] * 30)
        row_nats = np.repeat(nats_N / rows_N, rows_N).tolist()
        rows = ScoreSums(row_nats, [7] * len(row_nats), [1] * len(row_nats))
        score = domain_score(HeldOutScores(rows, documents), "here").score
        losses.append(score.loss)
        errors.append(score.loss_standard_error)
        of_rows.append(score_of(row_nats, rows.tokens, rows.bytes).score.loss_standard_error)
    assert np.mean(errors) == pytest.approx(np.std(losses), rel=0.08)
    assert np.mean(of_rows) < 0.7 * np.std(losses)


def test_one_document_has_no_standard_error_and_tokens_without_bytes_no_bits_per_byte():
    score = score_of([3.0], [2], [0]).score
    assert score.loss_standard_error is None
    assert score.bits_per_byte is None


def test_perplexity_that_overflows_is_absent():
    assert score_of([2000.0], [1], [1]).score.perplexity is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_that_is_not_finite_is_refused_with_its_place(bad: float):
    sums = ScoreSums([1.0, bad], [1, 1], [1, 1])
    with pytest.raises(UserError, match="model x, domain y"):
        domain_score(HeldOutScores(sums, sums), "model x, domain y")


def test_overall_is_weighted_by_the_mixture_and_not_by_held_out_tokens():
    domains = {
        "a": score_of([10.0, 10.0], [10, 10], [40, 40]),
        "b": score_of([9.0, 11.0], [5, 5], [10, 10]),
        "unweighted": score_of([900.0], [1], [1]),
    }
    overall = overall_score(domains, {"a": 0.75, "b": 0.25, "unweighted": 0.0})
    assert overall.loss == pytest.approx(0.75 * 1.0 + 0.25 * 2.0)
    assert overall.bits_per_byte == pytest.approx(1.25 / math.log(2) / (0.75 * 4 + 0.25 * 2))
    b_error = domains["b"].score.loss_standard_error
    assert b_error is not None
    assert overall.loss_standard_error == pytest.approx(0.25 * b_error)


def test_a_weighted_domain_that_was_not_scored_is_refused():
    domains = {"a": score_of([1.0], [1], [1])}
    with pytest.raises(UserError, match=r"domain b has weight 0\.5"):
        overall_score(domains, {"a": 0.5, "b": 0.5})


def test_variance_of_rows_is_that_of_every_token_by_itself_weighted_as_the_mixture():
    rows = {"a": ([8.0, 30.0], [10, 10]), "b": ([9.0, 11.0, 40.0], [5, 5, 10])}
    domains = {name: score_of(nats, tokens, tokens) for name, (nats, tokens) in rows.items()}
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
