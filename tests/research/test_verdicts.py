from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from wrinklefree.research.verdicts import (
    Change,
    claim_verdict,
    loss_difference,
    relative_change,
    tokens_needed,
)

SHARES = {"left": 0.3, "right": 0.7}


def results(offset: float, seeds: int, noise: float = 0.0) -> list[dict[str, Any]]:
    """Losses of 40 documents per domain around 3 nats, ``offset`` more, and each seed its luck."""
    documents = np.random.default_rng(0)
    luck = np.random.default_rng(abs(int(offset * 1000)) + 1)
    tokens = documents.integers(20, 60, size=40)
    base = documents.normal(3.0, 0.5, size=40)
    return [
        {
            "domains": {
                name: {
                    "nats": ((base + offset + luck.normal(0, noise)) * tokens).tolist(),
                    "tokens": tokens.tolist(),
                }
                for name in SHARES
            }
        }
        for _ in range(seeds)
    ]


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(("offset", "verdict"), [(-0.2, "better"), (0.2, "worse")])
def test_a_planted_difference_is_found(seeds: int, offset: float, verdict: str):
    found = loss_difference(results(offset, seeds), results(0.0, seeds), SHARES, 0.95)
    assert found["mean"] == pytest.approx(offset)
    assert found["verdict"] == verdict


def test_equal_variants_are_undecided():
    found = loss_difference(results(0.0, 3), results(0.0, 3), SHARES, 0.95)
    assert (found["mean"], found["verdict"]) == (0.0, "undecided")
    noisy = loss_difference(results(0.001, 3, noise=0.1), results(0.0, 3, noise=0.1), SHARES, 0.95)
    assert noisy["verdict"] == "undecided"


def test_domains_count_by_their_share():
    ours = results(0.0, 1)
    for document, tokens in enumerate(ours[0]["domains"]["right"]["tokens"]):
        ours[0]["domains"]["right"]["nats"][document] += 0.1 * tokens
    assert loss_difference(ours, results(0.0, 1), SHARES, 0.95)["mean"] == pytest.approx(0.07)


def test_a_relative_change_is_students_interval_of_the_logs():
    change = relative_change([0.5, 1.0, 4.0], [1.0, 1.0, 1.0], 0.95)
    mean, error = math.log(2.0) / 3, 1.5275252316519468 * math.log(2.0) / math.sqrt(3)
    reach = 4.302652729911275 * error  # of two degrees of freedom, from a table
    assert change.mean == pytest.approx(math.expm1(mean))
    assert change.low == pytest.approx(math.expm1(mean - reach))
    assert change.high == pytest.approx(math.expm1(mean + reach))


@pytest.mark.parametrize(
    ("factor", "noise", "verdict"),
    [
        (0.5, 0.02, "confirmed"),
        (0.2, 0.02, "confirmed"),  # more than was claimed
        (0.9, 0.02, "refuted"),
        (1.0, 0.02, "refuted"),
        (2.0, 0.02, "refuted"),
        (0.7, 1.0, "undecided"),
    ],
)
def test_a_claim_of_half_is_judged_by_what_was_planted(factor: float, noise: float, verdict: str):
    luck_S = np.exp(noise * np.array([-1.0, 0.1, 0.9]))
    change = relative_change((factor * luck_S).tolist(), [1.0, 1.0, 1.0], 0.95)
    assert claim_verdict(change, -0.5) == verdict


def test_an_interval_that_holds_the_claim_and_nothing_is_undecided():
    assert claim_verdict(Change(-0.3, -0.6, 0.1), -0.5) == "undecided"
    assert claim_verdict(Change(-0.3, -0.6, -0.1), -0.5) == "confirmed"
    assert claim_verdict(Change(-0.3, -0.4, -0.1), -0.5) == "refuted"


def test_tokens_needed_are_read_between_measurements():
    reference = [(100.0, 5.0), (200.0, 4.0)]
    assert tokens_needed([(100.0, 4.5), (200.0, 3.5)], reference) == pytest.approx(0.75)
    assert tokens_needed([(100.0, 3.9), (200.0, 3.5)], reference) == 0.5
    assert tokens_needed(reference, reference) == 1.0
    assert tokens_needed([(100.0, 5.0), (200.0, 4.1)], reference) == math.inf
