from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from wrinklefree.config.load import overlay, read_yaml
from wrinklefree.config.presets import find_preset, lay_into
from wrinklefree.errors import UserError

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    shutil.copytree(PROJECT / "params", tmp_path / "params")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore::wrinklefree.config.optimizer.UnusualLearningRateWarning")
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
