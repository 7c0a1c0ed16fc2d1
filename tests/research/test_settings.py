from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from wrinklefree.config.load import validate
from wrinklefree.errors import UserError
from wrinklefree.schema.load import overlay, read_yaml

PARAMETERS = read_yaml(Path(__file__).parents[2] / "params.yaml")
LATE_PHASE = [{"from_step": 1, "weights": PARAMETERS["mixture"]["weights"]}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regmix": {"runs": [0, 1, 2, 3, 4, 5, 5]}}, "regmix: runs has a number twice"),
        ({"regmix": {"runs": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]}}, "fit.held_out_runs 8 leaves 2 to"),
        ({"regmix": {"draw": {"concentration_min": 21.0}}}, "21 is above concentration_max 20"),
        ({"regmix": {"fit": {"best_candidates": 30000}}}, "best_candidates 30000 is more than"),
        ({"regmix": {"fit": {"target": {"code": 0.0}}}}, "every weight of target is 0"),
        ({"microanneal": {"verdict": {"target": {"code": 0.0}}}}, "every weight of target is 0"),
        ({"microanneal": {"seeds": [1, 1]}}, "microanneal: seeds has a number twice"),
        (
            {"microanneal": {"arms": {"present": {"weights": {"code": 0.3}}}}},
            "microanneal.arms.present.weights: weights sum to 0.3, expected 1",
        ),
        (
            {"microanneal": {"arms": {"candidate": {"weights": {"code": None, "web": 0.1207}}}}},
            "microanneal.arms.candidate.weights and mixture.weights differ in code, web",
        ),
        (
            {"microanneal": {"arms": {"present": {"weights": {"code": 1.0}}}}},
            "arms.present.weights and mixture.weights differ in encyclopaedic, maths, reference",
        ),
        (
            {"microanneal": {"verdict": {"target": {"code": 1.0, "web": 1.0}}}},
            "microanneal.verdict.target names web, but mixture.weights has only code, encyclop",
        ),
        ({"regmix": {"fit": {"target": {"web": 1.0}}}}, "regmix.fit.target names web"),
        ({"microanneal": {"verdict": {"confidence": 0.99995}}}, "less than or equal to 0.9999"),
        ({"microanneal": {"verdict": {"confidence": 0.4}}}, "greater than or equal to 0.5"),
        ({"regmix": {"draw": {"floor": 0.2}}}, "floor 0.2 of 5 domains leaves nothing to draw"),
        (
            {"regmix": {"training": {"data": {"phases": LATE_PHASE}}}},
            "regmix: training.data is set, but these trainings compare mixtures",
        ),
        (
            {"microanneal": {"training": {"data": {"phases": LATE_PHASE}}}},
            "microanneal: training.data is set, but these trainings compare mixtures",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(change: dict[str, Any], message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        validate(overlay(PARAMETERS, change))


@pytest.mark.parametrize("taken", ["target", "overall"])
def test_a_domain_of_the_name_that_the_sum_of_all_has_is_refused(taken: str):
    weights = {
        taken if name == "code" else name: weight
        for name, weight in PARAMETERS["mixture"]["weights"].items()
    }
    renamed = overlay(
        PARAMETERS,
        {
            "sources": {"code": {"domain": taken}},
            "mixture": {"weights": {"code": None, **weights}},
            "microanneal": {"arms": {"candidate": {"weights": None}}},
        },
    )
    with pytest.raises(UserError, match=f"a source has the domain {taken}, which is what the"):
        validate(renamed)


def test_a_floor_that_leaves_something_and_a_target_of_one_domain_are_accepted():
    change = {"regmix": {"draw": {"floor": 0.19}, "fit": {"target": {"code": 1.0}}}}
    assert validate(overlay(PARAMETERS, change)).regmix.draw.floor == 0.19
