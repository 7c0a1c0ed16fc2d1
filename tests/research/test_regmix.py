from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wrinklefree.config.catalog import read_domain_recipe
from wrinklefree.errors import UserError
from wrinklefree.research.proxies import Proxies, train_proxy
from wrinklefree.research.regmix import analyse, propose_mixture, table_text, write
from wrinklefree.research.settings import TARGET, DrawSettings, FitSettings
from wrinklefree.tracking.stage import Stage

PRESENT = {"a": 0.4, "b": 0.3, "c": 0.3}
DRAW = DrawSettings(concentration_min=2.0, concentration_max=8.0, floor=0.02)


def fit_settings(**changes: Any) -> FitSettings:
    values = {
        "held_out_runs": 4,
        "regression": "log_linear",
        "candidates": 500,
        "best_candidates": 10,
        "bootstraps": 20,
    }
    return FitSettings(**(values | changes))


@pytest.fixture
def made_up() -> Proxies:
    """20 runs under a known law with a little noise."""
    generator = np.random.default_rng(3)
    weights_ND = generator.dirichlet([2.0, 2.0, 2.0], size=20)
    losses_ND = 3.0 - np.log(weights_ND + 0.01) * [0.1, 0.4, 0.1]
    losses_ND += generator.normal(0, 0.01, losses_ND.shape)
    return Proxies(list(range(20)), PRESENT, weights_ND, losses_ND, 1000, 2000)


def test_a_law_with_little_noise_is_predicted_and_improved_on(made_up: Proxies):
    found = analyse(made_up, DRAW, fit_settings(), seed=1)
    assert found.agreement[TARGET].rank_correlation == 1.0
    assert found.agreement["b"].error < 0.3 * found.agreement["b"].error_of_mean
    assert found.recipe["b"] > PRESENT["b"]
    low, high = found.gain_interval
    assert 0.0 < low < found.gain < high
    for name, (low, high) in found.weight_intervals.items():
        assert low <= found.recipe[name] <= high


def test_held_out_runs_judge_and_are_not_fitted_on(made_up: Proxies):
    before = analyse(made_up, DRAW, fit_settings(), seed=1)
    losses_ND = made_up.losses_ND.copy()
    losses_ND[-4:] = losses_ND[-4:][::-1]
    after = analyse(dataclasses.replace(made_up, losses_ND=losses_ND), DRAW, fit_settings(), seed=1)
    assert before.recipe == after.recipe
    assert np.array_equal(before.best.bootstrap_weights_QD, after.best.bootstrap_weights_QD)
    assert after.agreement[TARGET].rank_correlation != before.agreement[TARGET].rank_correlation


@pytest.mark.parametrize(
    "changes",
    [
        {"held_out_runs": 12},
        {"regression": "linear"},
        {"target": {"a": 1.0}},
        {"candidates": 600},
        {"best_candidates": 11},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_setting_of_the_fit_moves_the_recipe(made_up: Proxies, changes: dict[str, Any]):
    one, other = (analyse(made_up, DRAW, fit_settings(**c), seed=1).recipe for c in ({}, changes))
    assert one != other


def test_the_target_is_scaled_and_may_leave_domains_out(made_up: Proxies):
    found = analyse(made_up, DRAW, fit_settings(target={"c": 3.0, "a": 1.0}), seed=1)
    assert found.target_D.tolist() == [0.25, 0.0, 0.75]
    with pytest.raises(UserError, match="target names the domain z, .* its domains: a, b, c"):
        analyse(made_up, DRAW, fit_settings(target={"z": 1.0}), seed=1)


def test_the_files_say_the_same_and_repeat_to_the_byte(made_up: Proxies, tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, analyse(made_up, DRAW, fit_settings(), seed=1))
    files = [path for path in sorted((tmp_path / "one").rglob("*")) if path.is_file()]
    assert len(files) == 6
    for path in files:
        assert (
            path.read_bytes()
            == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
        )
    content = json.loads((tmp_path / "one" / "regmix.json").read_text())
    recipe = read_domain_recipe(tmp_path / "one" / "recipe.yaml")
    assert recipe.weights == content["recipe"]
    assert [run["held_out"] for run in content["runs"]] == [False] * 16 + [True] * 4
    target = sum(
        content["target"][name] * (content["predicted_present"][name] - loss)
        for name, loss in content["predicted_recipe"].items()
    )
    assert target == pytest.approx(content["gain"])


def test_the_table_fits_a_terminal(made_up: Proxies):
    names = ["a_domain_whose_name_is_longer_than_any_column", "b", "c"]
    renamed = dataclasses.replace(
        made_up, present=dict(zip(names, PRESENT.values(), strict=True)), parameters=10**9
    )
    text = table_text(analyse(renamed, DRAW, fit_settings(), seed=1))
    assert max(map(len, text.splitlines())) <= 80
    assert "On 4 runs that it was not fitted on" in text


def test_a_regression_that_orders_by_chance_is_called_so(made_up: Proxies):
    assert "let microanneal compare it" in table_text(
        analyse(made_up, DRAW, fit_settings(), seed=1)
    )
    losses_ND = np.random.default_rng(0).normal(3.0, 0.1, made_up.losses_ND.shape)
    found = analyse(dataclasses.replace(made_up, losses_ND=losses_ND), DRAW, fit_settings(), seed=1)
    assert "Don't trust the proposal" in table_text(found)


def test_the_stage_goes_from_small_trainings_to_a_recipe(
    make_stage: Callable[..., Stage], as_artifact: Callable[..., Path], mixture: Path
):
    folders = {}
    for number in range(6):
        run = make_stage("regmix_run", str(number), {"mixture": mixture})
        folders[f"runs.{number}"] = as_artifact(run, train_proxy(run))
    stage = make_stage("regmix", None, folders)
    facts = propose_mixture(stage)
    assert read_domain_recipe(stage.folder / "recipe.yaml").weights == facts["recipe"]
    assert facts["recipe"]["spare"] == 0.0
    assert facts["runs"] == 6
    other = make_stage("regmix", None, folders, {"regmix.runs": [5, 4, 3, 2, 1, 0]})
    assert propose_mixture(other)["predicted_gain"] != facts["predicted_gain"], (
        "others are held out"
    )
