from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from wrinklefree.config.load import validate
from wrinklefree.errors import UserError
from wrinklefree.schema.load import overlay, read_yaml

PARAMETERS = read_yaml(Path(__file__).parents[2] / "params.yaml")
RATE = "optimizer.muon.lr"
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
        (
            {"search": {"ranges": {RATE: {"high": 20.0}}}},
            "search: ranges has optimizer.muon.lr at 20.0: input should be less than or equal to",
        ),
        (
            {"search": {"ranges": {"optimizer.lr": {"low": 0.1, "high": 0.2}}}},
            "ranges has optimizer.lr, which is no setting of stage2; did you mean optimizer.muon",
        ),
        (
            {"search": {"ranges": {"schedule.warmup_steps": {"low": 1, "high": 9.5}}}},
            "ranges has schedule.warmup_steps at 9.5: input should be a valid integer",
        ),
        (
            {"search": {"ranges": {"schedule.kind": {"choices": ["cosine", "sine"]}}}},
            "ranges has schedule.kind at 'sine': input should be 'cosine', 'linear', 'wsd' or",
        ),
        (
            {"search": {"ranges": {"schedule.kind": {"low": 1, "high": 2}}}},
            "ranges has low and high for schedule.kind, which is no number: give choices",
        ),
        (
            {"search": {"ranges": {"steps": {"low": 10, "high": 20}}}},
            "ranges has steps, but trials are compared after as many rows",
        ),
        (
            {"search": {"ranges": {"evaluate_interval": {"low": 10, "high": 20}}}},
            "ranges has evaluate_interval, on which no loss depends",
        ),
        (
            {"search": {"ranges": {"optimizer.name": {"choices": ["adamw", "muon"]}}}},
            "ranges has optimizer.name: choose one, and make a search for each",
        ),
        ({"search": {"ranges": {RATE: {"high": None}}}}, "expected low and high, or choices"),
        ({"search": {"ranges": {RATE: {"choices": [0.1, 0.2]}}}}, "choices stands beside low"),
        ({"search": {"ranges": {RATE: {"low": 0.1}}}}, "low is 0.1, which is not below high 0.01"),
        ({"search": {"ranges": {RATE: {"low": -1.0}}}}, "low is -1, which has no logarithm"),
        (
            {"search": {"ranges": {RATE: {"hihg": 1.0}}}},
            ".hihg: unknown setting; did you mean high",
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
