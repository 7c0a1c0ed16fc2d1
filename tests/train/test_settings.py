from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from wrinklefree.config.load import validate
from wrinklefree.errors import UserError
from wrinklefree.schema.load import read_yaml
from wrinklefree.train.settings import UnusualLambdaWarmupWarning

PROJECT = Path(__file__).parents[2]
TRAININGS = ["base.scratch.training", "stage2", "dlm", "distill.ar", "distill.dlm"]


@pytest.fixture(scope="module")
def parameters() -> dict[str, Any]:
    return read_yaml(PROJECT / "params.yaml")


def with_data(parameters: dict[str, Any], path: str, data: dict[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(parameters)
    section = result
    for key in path.split("."):
        section = section[key]
    section["data"] = data
    return result


def phase(parameters: dict[str, Any], from_step: int, **weights: float) -> dict[str, Any]:
    zero = dict.fromkeys(parameters["mixture"]["weights"], 0.0)
    return {"from_step": from_step, "weights": {**zero, **weights}}


def test_training_is_shuffled_and_in_one_phase_unless_told(parameters: dict[str, Any]) -> None:
    data = validate(parameters).stage2.data
    assert (data.order, data.phases) == ("shuffled", [])
    assert validate(parameters).mixture.max_repetition == 4.0


@pytest.mark.parametrize("path", TRAININGS)
def test_every_training_takes_phases_that_weigh_all_domains(
    parameters: dict[str, Any], path: str
) -> None:
    phases = [phase(parameters, 0, code=1.0), phase(parameters, 49, code=0.5, maths=0.5)]
    validate(with_data(parameters, path, {"phases": phases}))
    other = phase(parameters, 3, code=1.0)
    del other["weights"]["maths"]
    with pytest.raises(UserError, match=rf"{path}\.data\.phases\.1\.weights .* differ in maths"):
        validate(with_data(parameters, path, {"phases": [phases[0], other]}))
    other = phase(parameters, 3, code=1.0, poems=0.0)
    with pytest.raises(UserError, match=rf"{path}\.data\.phases\.0\.weights .* differ in poems"):
        validate(with_data(parameters, path, {"phases": [other]}))


@pytest.mark.parametrize(
    ("steps", "weights", "message"),
    [
        ([3, 3], {"code": 1.0}, r"phases begin at the steps 3, 3, expected each to begin after"),
        ([5, 2], {"code": 1.0}, r"phases begin at the steps 5, 2"),
        ([3, 200], {"code": 1.0}, r"one from step 200 on and steps is 200: it would never begin"),
        ([-1], {"code": 1.0}, r"from_step: .*greater than or equal to 0"),
        ([3], {"code": 0.9}, r"phases\.0\.weights: weights sum to 0\.9, expected 1"),
        ([3], {"code": 1.1, "maths": -0.1}, r"weights\.maths: .*greater than or equal to 0"),
    ],
)
def test_phases_that_can_not_be_are_refused(
    parameters: dict[str, Any], steps: list[int], weights: dict[str, float], message: str
) -> None:
    phases = [phase(parameters, step, **weights) for step in steps]
    with pytest.raises(UserError, match=message):
        validate(with_data(parameters, "stage2", {"phases": phases}))


def test_a_model_from_scratch_has_no_losses_to_order_rows_by(parameters: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="a model from scratch has learnt nothing"):
        validate(with_data(parameters, "base.scratch.training", {"order": "loss"}))
    with pytest.raises(UserError, match=r"stage2\.data\.order.*'shuffled', 'length' or 'loss'"):
        validate(with_data(parameters, "stage2", {"order": "easy"}))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("path", ["stage2", "dlm", "distill.ar"])
def test_a_long_training_whose_quantization_grows_too_fast_or_too_slowly_warns(
    parameters: dict[str, Any], path: str, schedule: str
) -> None:
    def warmup(steps: int, warmup_steps: int, schedule: str = schedule) -> None:
        changed = copy.deepcopy(parameters)
        section = changed
        for key in path.split("."):
            section = section[key]
        section |= {"steps": steps}
        section["lambda_warmup"] = {"warmup_steps": warmup_steps, "schedule": schedule}
        validate(changed)

    for steps, warmup_steps in ((1000, 50), (1020, 51), (1000, 100), (2000, 150), (1000, 0)):
        warmup(steps, warmup_steps)
    for warmup_steps in (49, 101, 999):
        with pytest.warns(UnusualLambdaWarmupWarning, match="Use 50 to 100, 0 for none, or"):
            warmup(1000, warmup_steps)
        warmup(1000, warmup_steps, "hard")
    warmup(999, 998)  # a share of a short training is a handful of steps
