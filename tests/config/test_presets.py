from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from wrinklefree.config.catalog import read_catalog, recipe_preset
from wrinklefree.config.load import validate
from wrinklefree.config.presets import find_preset, lay_into
from wrinklefree.errors import UserError
from wrinklefree.schema.load import overlay, read_yaml
from wrinklefree.train.data import samples_per_step

PROJECT = Path(__file__).parents[2]
PRESETS = {path.stem: path.read_text() for path in sorted((PROJECT / "params").glob("*.yaml"))}
OF_A_HUB = ("dataset:", "wrinklefree recipe")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    shutil.copytree(PROJECT / "params", tmp_path / "params")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore::wrinklefree.optim.settings.UnusualLearningRateWarning")
def test_every_preset_laid_into_params_reads_as_its_overlay(project: Path):
    params = Path("params.yaml")
    for preset in sorted(Path("params").glob("*.yaml")):
        expected = overlay(read_yaml(params), read_yaml(preset))
        laid = project / "laid.yaml"
        laid.write_text(lay_into(params, preset))
        assert read_yaml(laid) == expected


def on_hub_sources(preset: str) -> dict[str, Any]:
    """The settings of a preset, over the sources of the recipe that its first lines name."""
    settings = read_yaml(PROJECT / "params.yaml")
    asked = re.search(r"wrinklefree recipe (\w+) --max-tokens (\d+)", PRESETS[preset])
    assert asked, "the preset says where its text comes from"
    name, tokens = asked.groups()
    catalog = read_catalog(PROJECT / "catalog.yaml")
    settings = overlay(settings, recipe_preset(catalog, name, settings, max_tokens=int(tokens)))
    return overlay(settings, read_yaml(PROJECT / "params" / f"{preset}.yaml"))


@pytest.mark.filterwarnings("ignore::wrinklefree.optim.settings.UnusualLearningRateWarning")
@pytest.mark.parametrize("name", [n for n in PRESETS if any(w in PRESETS[n] for w in OF_A_HUB)])
def test_a_preset_has_as_much_text_as_its_trainings_read(name: str):
    settings = validate(on_hub_sources(name))
    tokens: dict[str, int] = {}
    for source in settings.sources.values():
        assert source.max_tokens, "text without an end, or of unknown length"
        tokens[source.domain] = tokens.get(source.domain, 0) + source.max_tokens
    mixture, scratch = settings.mixture, settings.base.scratch
    trainings = [settings.stage2, settings.dlm, settings.distill.ar, settings.distill.dlm]
    for training in (*trainings, *([scratch.training] if scratch else ())):
        read = training.steps * samples_per_step(training) * mixture.sequence_length
        for domain, weight in mixture.weights.items():
            share = weight / sum(mixture.weights.values())
            assert read * share <= mixture.max_repetition * tokens[domain], domain


def test_comments_outside_the_preset_stay(project: Path):
    Path("params/few.yaml").write_text("stage2:\n  steps: 777\n")
    before = Path("params.yaml").read_text()
    text = lay_into(Path("params.yaml"), find_preset("few"))
    assert "steps: 777" in text
    for line in before.splitlines():
        if line.startswith("#"):
            assert line in text


def test_lines_that_a_preset_does_not_name_stay_as_they_are(project: Path):
    (project / "seed.yaml").write_text("seed: 5\n")
    before = (PROJECT / "params.yaml").read_text()
    after = lay_into(Path("params.yaml"), project / "seed.yaml")
    assert after == before.replace("seed: 1337\n", "seed: 5\n", 1) != before


def test_a_missing_preset_names_those_that_exist(project: Path):
    with pytest.raises(UserError, match="no preset qwen5; presets in params/: .*qwen3_4b"):
        find_preset("qwen5")


def test_an_invalid_preset_changes_nothing(project: Path):
    Path("params/bad.yaml").write_text("stage2:\n  stepz: 7\n")
    with pytest.raises(UserError, match="stage2.stepz"):
        lay_into(Path("params.yaml"), Path("params/bad.yaml"))


def test_text_that_looks_like_something_else_is_laid_in_quotes(project: Path):
    texts = ["no", "1:40", "0100", "1_000", "2024-01-01", "1e-4", "y", "null", "12"]
    Path("params/few.yaml").write_text(f"evaluate: {{prompts: {texts}}}\n")
    laid = project / "laid.yaml"
    laid.write_text(lay_into(Path("params.yaml"), find_preset("few")))
    assert read_yaml(laid)["evaluate"]["prompts"] == texts
    assert YAML(typ="safe").load(laid.read_text())["evaluate"]["prompts"] == texts


def test_a_preset_over_settings_that_stand_in_two_places_is_refused(project: Path):
    params = Path("params.yaml")
    text = params.read_text()
    schedule = "schedule: {warmup_steps: 20}"
    text = text.replace(schedule, schedule.replace(" {", " &shared {"), 1)
    params.write_text(text.replace(schedule, "schedule: *shared", 1))
    Path("params/few.yaml").write_text("stage2: {schedule: {warmup_steps: 5}}\n")
    with pytest.raises(UserError, match="would change more than it names"):
        lay_into(params, find_preset("few"))
