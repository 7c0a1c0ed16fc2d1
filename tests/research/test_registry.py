from __future__ import annotations

import re
from pathlib import Path

import pytest

from wrinklefree.config.load import validate
from wrinklefree.models.dense import build_scratch
from wrinklefree.models.surgery import insert_bitlinear
from wrinklefree.quant.settings import QuantizerSettings
from wrinklefree.research.experiment import finalists
from wrinklefree.research.registry import EXPERIMENTS, MEASURES
from wrinklefree.research.variants import folder_of, training_settings
from wrinklefree.schema.load import overlay, read_yaml
from wrinklefree.train.data import samples_per_step
from wrinklefree.train.distill_settings import DistillationSettings

PROJECT = Path(__file__).parents[2]
DEFAULT = read_yaml(PROJECT / "params.yaml")
TINY = overlay(DEFAULT, read_yaml(PROJECT / "params" / "tiny.yaml"))


def test_the_default_run_has_every_experiment():
    assert DEFAULT["experiments"]["names"] == list(EXPERIMENTS)


@pytest.mark.parametrize("parameters", [DEFAULT, TINY], ids=["default", "tiny"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_variant_has_valid_settings_and_as_many_tokens(name: str, parameters: dict):
    runs = validate(parameters).experiments.runs
    experiment = EXPERIMENTS[name]
    for key, variant in experiment.variants.items():
        settings = training_settings(experiment, variant, runs)
        if variant.distillation:
            DistillationSettings.model_validate(dict(variant.distillation))
        rows = settings.steps * samples_per_step(settings)
        assert abs(rows - runs.steps * runs.batch_size) < samples_per_step(settings), key
        assert re.fullmatch(r"[a-z0-9_-]+", folder_of(key, 0)), "a folder, and names of metrics"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_variants_and_claims_refer_to_exists(name: str):
    experiment = EXPERIMENTS[name]
    families = {experiment.family_of(variant) for variant in experiment.variants}
    named = {experiment.opponent_of(variant) for variant in experiment.variants}
    assert named | {claim.family for claim in experiment.claims} <= families
    assert set(experiment.shown) | {claim.measure for claim in experiment.claims} <= set(MEASURES)
    assert all(-1 < claim.change < 0 for claim in experiment.claims)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_a_finalist_is_compared_with_is_a_finalist(name: str):
    experiment = EXPERIMENTS[name]
    losses: dict[str, float | None] = {v: float(-i) for i, v in enumerate(experiment.variants)}
    best = {experiment.family_of(v): v for v in experiment.variants}  # the last has the lowest
    final = finalists(experiment, best, losses)
    for variant in final:
        assert best[experiment.opponent_of(variant)] in final
    assert {best[claim.family] for claim in experiment.claims} <= set(final)
    assert (final == list(experiment.variants)) == experiment.every_seed


def test_every_quantizer_fits_the_tiny_model():
    shape = validate(TINY).experiments.runs.model
    for experiment in EXPERIMENTS.values():
        for variant in experiment.variants.values():
            model = build_scratch(shape, 64, 8, 0, seed=0)
            insert_bitlinear(model, QuantizerSettings(**variant.quantizer))
