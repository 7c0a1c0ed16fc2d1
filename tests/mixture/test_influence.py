from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrinklefree.mixture.influence import influence_weights, smoothed_scores

NAMES = ["a", "b", "c"]


@given(
    st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3),
    st.lists(st.floats(-1.0, 1.0), min_size=3, max_size=3),
    st.floats(0.0, 300.0),
    st.floats(0.0, 0.3),
)
def test_weights_are_a_floored_softmax_from_the_prior(raw, scores, step_size, floor):
    prior = {name: share / sum(raw) for name, share in zip(NAMES, raw, strict=True)}
    scored = dict(zip(NAMES, scores, strict=True))
    weights = influence_weights(prior, scored, step_size=step_size, floor=floor)
    assert math.isclose(sum(weights.values()), 1.0, rel_tol=1e-12)
    assert min(weights.values()) >= floor
    above = {name: weights[name] - floor for name in NAMES}
    for one, other in (("a", "b"), ("b", "c")):
        if min(above[one], above[other]) > 1e-9:
            ratio = math.log(above[one] / above[other])
            expected = math.log(prior[one] / prior[other])
            expected += step_size * (scored[one] - scored[other])
            assert math.isclose(ratio, expected, rel_tol=1e-5, abs_tol=1e-5)


def test_a_domain_without_a_prior_stays_out():
    weights = influence_weights({"a": 0.5, "b": 0.5, "c": 0.0}, {"a": 1.0, "b": 0.0},
                                step_size=1.0, floor=0.1)  # fmt: skip
    assert weights["c"] == 0.0 and weights["a"] > 0.5 > weights["b"] > 0.1


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "differ in a, b"),
        ({"a": 0.1}, "differ in b"),
        ({"a": 0.1, "b": 0.1, "c": 0.1}, "differ in c"),
        ({"a": 0.1, "b": math.nan}, "not finite"),
    ],
)
def test_scores_that_are_missing_are_an_error_and_no_silence(scores, message):
    with pytest.raises(ValueError, match=message):
        influence_weights({"a": 0.5, "b": 0.5, "c": 0.0}, scores, step_size=1.0, floor=0.0)


def test_scores_are_smoothed_from_the_first_on():
    first = smoothed_scores({}, {"a": 1.0}, 0.75)
    assert first == {"a": 1.0}
    assert smoothed_scores(first, {"a": -1.0}, 0.75) == {"a": 0.5}
