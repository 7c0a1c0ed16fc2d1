from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from wrinklefree.research.intervals import Difference, paired_difference, single_difference

SEEDS, DOCUMENTS = 3, 12
Lengths = Callable[[np.random.Generator], np.ndarray]


def alike(generator: np.random.Generator) -> np.ndarray:
    return generator.integers(200, 256, DOCUMENTS)


def log_normal(generator: np.random.Generator) -> np.ndarray:
    return generator.lognormal(5, 1, 20).astype(int) + 5


def one_is_most(generator: np.random.Generator) -> np.ndarray:
    return np.append(generator.integers(100, 256, DOCUMENTS), 4000)


def draw(
    generator: np.random.Generator,
    luck: tuple[float, float, float],
    domains: int,
    truth: float,
    lengths: Lengths = alike,
) -> dict[str, Any]:
    """Nats and tokens of made-up differences whose truth, seeds, documents and rest are known."""
    seeds_sd, documents_sd, rest_sd = luck
    seeds_S1 = generator.normal(0, seeds_sd, (SEEDS, 1))
    nats, tokens = {}, {}
    for domain in "abcde"[:domains]:
        tokens[domain] = lengths(generator)
        documents_N = generator.normal(0, documents_sd, len(tokens[domain]))
        rest_SN = generator.normal(0, rest_sd, (SEEDS, len(tokens[domain])))
        nats[domain] = (truth + seeds_S1 + documents_N + rest_SN) * tokens[domain]
    return {"nats": nats, "tokens": tokens}


def coverage(cases: Iterable[dict[str, Any]], domains: int, truth: float) -> float:
    """Part of the 95 % intervals that hold the truth."""
    shares = dict.fromkeys("abcde"[:domains], 1 / domains)
    held = []
    for case in cases:
        found = paired_difference(**case, shares=shares, confidence=0.95)
        held.append(found.low <= truth <= found.high)
    return sum(held) / len(held)


LUCKS = [
    (0.03, 0.0, 0.0),  # of seeds only
    (0.0, 0.05, 0.01),  # of documents
    (0.0, 0.0, 0.05),  # of neither
    (0.015, 0.05, 0.05),  # of all, in about equal parts
    (0.03, 0.05, 0.1),
]


@pytest.mark.parametrize("domains", [1, 4])
@pytest.mark.parametrize("luck", LUCKS)
def test_intervals_of_95_percent_hold_the_truth_about_that_often(
    luck: tuple[float, float, float], domains: int
):
    generator = np.random.default_rng(7)
    cases = (draw(generator, luck, domains, 0.01) for _ in range(800))
    # Binomial noise has a standard deviation of 0.8 %; the method may be 3 % too careful.
    assert 0.95 - 0.024 <= coverage(cases, domains, 0.01) <= 0.98 + 0.015


@pytest.mark.parametrize(("lengths", "most"), [(log_normal, 0.99), (one_is_most, 1.0)])
@pytest.mark.parametrize("luck", LUCKS)
def test_documents_of_different_lengths_do_not_make_intervals_too_short(
    luck: tuple[float, float, float], lengths: Lengths, most: float
):
    generator = np.random.default_rng(8)
    cases = (draw(generator, luck, 1, 0.01, lengths) for _ in range(600))
    assert 0.95 - 0.027 <= coverage(cases, 1, 0.01) <= most


def test_rows_of_one_document_are_not_independent():
    """Counted as units, the rows of long documents make intervals that miss the truth."""
    generator = np.random.default_rng(9)
    by_document, by_row = [], []
    for _ in range(500):
        rows_N = np.array([16, 16, 8, 4, 4, 2, 2, 1, 1, 1, 1, 1])
        luck_N = generator.normal(0, 0.05, len(rows_N))
        loss_SR = (
            0.01 + np.repeat(luck_N, rows_N) + generator.normal(0, 0.02, (SEEDS, rows_N.sum()))
        )
        by_row.append({"nats": {"a": loss_SR * 256}, "tokens": {"a": np.full(rows_N.sum(), 256)}})
        first_N = np.cumsum(rows_N) - rows_N
        nats_SN = np.add.reduceat(loss_SR * 256, first_N, axis=1)
        by_document.append({"nats": {"a": nats_SN}, "tokens": {"a": rows_N * 256}})
    assert coverage(by_row, 1, 0.01) < 0.7
    assert 0.93 < coverage(by_document, 1, 0.01) < 0.99


def test_a_document_counts_by_the_loss_without_it():
    made = draw(np.random.default_rng(4), (0.0, 0.2, 0.0), 1, 0.5, log_normal)
    nats_SN, tokens_N = made["nats"]["a"], made["tokens"]["a"]
    count = len(tokens_N)
    loss = nats_SN[0].sum() / tokens_N.sum()
    without = [np.delete(nats_SN[0], n).sum() / np.delete(tokens_N, n).sum() for n in range(count)]
    variance = (count - 1) / count * sum((other - loss) ** 2 for other in without)
    found = paired_difference(**made, shares={"a": 1.0}, confidence=0.95)
    assert (found.seeds_error, found.documents_error) == pytest.approx((0.0, math.sqrt(variance)))
    alike = tokens_N.sum() ** 2 / (tokens_N**2).sum()
    reach = stats.t.ppf(0.975, alike - 1) * math.sqrt(variance)
    assert found.high - found.mean == pytest.approx(reach)


def test_the_interval_is_that_of_the_crossed_design():
    generator = np.random.default_rng(1)
    tokens_N = np.full(DOCUMENTS, 10)
    loss_SN = generator.normal(0, 1, (SEEDS, DOCUMENTS)) + generator.normal(0, 1, DOCUMENTS)
    found = paired_difference({"a": loss_SN * 10}, {"a": tokens_N}, {"a": 1.0}, 0.9)
    mean = loss_SN.mean()
    rest = 0.0
    for s in range(SEEDS):
        for n in range(DOCUMENTS):
            rest += (loss_SN[s, n] - loss_SN[s].mean() - loss_SN[:, n].mean() + mean) ** 2
    rest /= (SEEDS - 1) * (DOCUMENTS - 1)
    seeds = sum((loss_SN[s].mean() - mean) ** 2 for s in range(SEEDS)) / (SEEDS - 1) / SEEDS
    documents = (
        sum((loss_SN[:, n].mean() - mean) ** 2 for n in range(DOCUMENTS))
        / (DOCUMENTS - 1)
        / DOCUMENTS
    )
    documents -= rest / (SEEDS * DOCUMENTS)
    assert found.mean == pytest.approx(mean)
    assert found.seeds_error == pytest.approx(math.sqrt(seeds))
    assert found.documents_error == pytest.approx(math.sqrt(documents))
    reach = math.hypot(
        stats.t.ppf(0.95, SEEDS - 1) * math.sqrt(seeds),
        stats.t.ppf(0.95, DOCUMENTS - 1) * math.sqrt(documents),
    )
    assert (found.low, found.high) == pytest.approx((mean - reach, mean + reach))


def test_the_mean_is_the_difference_of_the_domains_losses_by_their_shares():
    made = draw(np.random.default_rng(3), (0.1, 0.2, 0.1), 3, 0.5)
    shares = {"a": 0.2, "b": 0.8, "c": 0.0}
    found = paired_difference(**made, shares=shares, confidence=0.95)
    losses = {name: made["nats"][name].sum(axis=1) / made["tokens"][name].sum() for name in "abc"}
    expected_S = 0.2 * losses["a"] + 0.8 * losses["b"]
    assert found.per_seed == pytest.approx(expected_S.tolist())
    assert found.mean == pytest.approx(expected_S.mean())


def test_the_interval_of_several_domains_has_the_degrees_of_freedom_of_satterthwaite():
    generator, shares = np.random.default_rng(3), {"a": 0.8, "b": 0.2}
    nats = {"a": 9 * generator.normal(size=4), "b": generator.normal(size=30)}
    tokens = {name: np.full(len(values), 10) for name, values in nats.items()}
    # Of documents of one length the mean has the textbook's variance.
    parts = {n: shares[n] ** 2 * (nats[n] / 10).var(ddof=1) / len(nats[n]) for n in shares}
    total = sum(parts.values())
    freedom = total**2 / sum(part**2 / (len(nats[n]) - 1) for n, part in parts.items())
    found = single_difference(nats, tokens, shares, 0.95)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(total)
    assert (found.high - found.low) / 2 == pytest.approx(half)
    assert freedom < 5


def test_a_longer_document_counts_for_more():
    tokens = {"a": np.array([10, 30])}
    found = paired_difference({"a": np.array([[10.0, 0.0]] * 2)}, tokens, {"a": 1.0}, 0.95)
    assert found.mean == pytest.approx(10 / 40)


def test_no_difference_at_all_is_exactly_0_and_undecided():
    zeros = {"a": np.zeros((SEEDS, DOCUMENTS)), "b": np.zeros((SEEDS, DOCUMENTS))}
    tokens = {"a": np.arange(1, DOCUMENTS + 1), "b": np.arange(1, DOCUMENTS + 1)}
    found = paired_difference(zeros, tokens, {"a": 0.5, "b": 0.5}, 0.95)
    assert (found.mean, found.low, found.high, found.verdict) == (0.0, 0.0, 0.0, "undecided")


def test_more_confidence_makes_a_wider_interval():
    made = draw(np.random.default_rng(3), (0.1, 0.2, 0.1), 2, 0.0)
    widths = [
        found.high - found.low
        for confidence in (0.5, 0.95, 0.99)
        for found in [paired_difference(**made, shares={"a": 1, "b": 1}, confidence=confidence)]
    ]
    assert widths == sorted(set(widths))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-2.0, -0.1, "better"), (0.1, 2.0, "worse"), (-0.1, 0.1, "undecided"), (0, 1, "undecided")],
)
def test_the_verdict_says_on_which_side_of_0_the_interval_is(low: float, high: float, verdict: str):
    assert Difference(0.0, low, high, 0.0, 0.0, []).verdict == verdict


def test_the_interval_of_a_single_pair_holds_the_truth_and_is_that_of_a_jackknife():
    generator = np.random.default_rng(5)
    tokens = {name: generator.integers(100, 256, 12 + number) for number, name in enumerate("ab")}
    shares, held, cases = {"a": 0.3, "b": 0.7}, 0, 1000
    for _ in range(cases):
        nats = {name: (0.1 + generator.normal(0, 0.2, len(t))) * t for name, t in tokens.items()}
        found = single_difference(nats, tokens, shares, 0.9)
        held += found.low <= 0.1 <= found.high
    assert 0.87 <= held / cases <= 0.94
    mean, variance = 0.0, 0.0
    for name, share in shares.items():
        loss = nats[name].sum() / tokens[name].sum()
        without = [
            np.delete(nats[name], i).sum() / np.delete(tokens[name], i).sum()
            for i in range(len(tokens[name]))
        ]
        mean += share * loss
        squares = sum((other - loss) ** 2 for other in without)
        variance += share**2 * squares * (len(without) - 1) / len(without)
    assert found.mean == pytest.approx(mean)
    # Between Student's quantiles of the smaller sample and of all documents together.
    reach = (found.high - found.mean) / math.sqrt(variance)
    assert stats.t.ppf(0.95, 23) <= reach <= stats.t.ppf(0.95, 9)
