from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from wrinklefree.config.presets import find_preset, lay_into
from wrinklefree.errors import UserError
from wrinklefree.schema.load import overlay, read_yaml

PROJECT = Path(__file__).parents[2]


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


def test_comments_outside_the_preset_stay(project: Path):
    Path("params/few.yaml").write_text("stage2:\n  steps: 777\n")
    before = Path("params.yaml").read_text()
    text = lay_into(Path("params.yaml"), find_preset("few"))
    assert "steps: 777" in text
    for line in before.splitlines():
        if line.startswith("#"):
            assert line in text


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
