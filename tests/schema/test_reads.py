from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from wrinklefree.engines.sections import write_sections
from wrinklefree.optim.settings import OptimizerSettings
from wrinklefree.schema.load import read_yaml
from wrinklefree.schema.reads import ALTERNATIVES, READS, narrow
from wrinklefree.stability.settings import ClippingSettings
from wrinklefree.train.settings import AveragingSettings

PROJECT = Path(__file__).parents[2]
OPTIMIZERS = {
    "base": "base.scratch.training.optimizer",
    "stage2": "stage2.optimizer",
    "dlm": "dlm.optimizer",
    "distill": "distill.ar.optimizer",
    "regmix_run": "regmix.training.optimizer",
    "microanneal_run": "microanneal.training.optimizer",
}
INSTANCES = {
    "distill": "ar",
    "regmix_run": "3",
    "microanneal_run": "present",
    "architecture": "moe",
}


@pytest.fixture
def parameters() -> dict[str, Any]:
    return read_yaml(PROJECT / "params.yaml")


def with_optimizer(parameters: dict[str, Any], path: str, **blocks: Any) -> dict[str, Any]:
    result = copy.deepcopy(parameters)
    section = result
    for key in path.split("."):
        section = section[key]
    section.update(blocks)
    return result


@pytest.mark.parametrize("stage", OPTIMIZERS)
def test_an_edit_of_a_block_that_is_not_chosen_changes_no_file_of_a_stage(
    parameters: dict[str, Any], stage: str, tmp_path: Path
):
    def written(**blocks: Any) -> Path:
        edited = with_optimizer(parameters, OPTIMIZERS[stage], **blocks)
        return write_sections(edited, stage, INSTANCES.get(stage), tmp_path)

    assert written(adamw={"lr": 2e-4}) == written(muonclip={"lr": 5e-4}) == written()
    assert len({written(), written(name="adamw"), written(name="adamw", adamw={"lr": 2e-4})}) == 3


def test_sections_of_later_stages_are_in_the_file_of_a_stage_and_not_in_its_name(
    parameters: dict[str, Any], tmp_path: Path
):
    def written() -> Path:
        return write_sections(parameters, "base", None, tmp_path)

    first, before = written(), written().read_text()
    parameters["export"] = {"gguf": ["Q4_0"]}
    assert written() == first and written().read_text() != before
    content = json.loads(first.read_text())
    assert content["export"] == parameters["export"] and content["subln"] == parameters["subln"]
    assert set(narrow(content, "base")) == {"seed", "base"} == set(content) - {"export", "subln"}


def test_a_source_may_be_called_like_a_setting_with_alternatives(parameters: dict[str, Any]):
    source = parameters["sources"]["code"]
    parameters["sources"]["optimizer"] = source
    parameters["mixture"]["weights"]["optimizer"] = 0.0
    narrowed = narrow(parameters, "mixture")
    assert narrowed == {"sources": parameters["sources"], "mixture": parameters["mixture"]}


@pytest.mark.parametrize("stage", sorted(READS))
def test_settings_of_a_stage_stay_the_same_when_narrowed_again(
    parameters: dict[str, Any], stage: str
):
    instance = {"fetch": "code", "tokenize": "code"}.get(stage) or INSTANCES.get(stage)
    once = narrow(parameters, stage, instance)
    assert narrow(once, stage, instance) == once


def test_an_architecture_is_laid_over_what_all_share(parameters: dict[str, Any]):
    section = parameters["architectures"]
    section["shared"]["stage2"]["optimizer"] = {"name": "muon", "muon": {}, "adamw": {"lr": 0.5}}
    section["each"]["moe"]["stage2"]["optimizer"] = {"name": "adamw"}
    narrowed = narrow(parameters, "architecture", "moe")
    assert narrowed["architectures"]["shared"] == {} and "base" not in narrowed
    (moe,) = narrowed["architectures"]["each"].values()
    assert moe["stage2"]["optimizer"] == {"name": "adamw", "adamw": {"lr": 0.5}}
    assert moe["base"]["model"]["hidden_size"] == 128 and moe["base"]["model"]["layers"] == 3


def test_what_is_no_block_of_an_alternative_is_left_for_the_stage_to_refuse():
    optimizer = {"name": "muon", "muon": {}, "adamw": {}, "lr": 0.1, "muons": {}}
    narrowed = narrow({"seed": 1, "stage2": {"optimizer": optimizer}}, "stage2")
    assert set(narrowed["stage2"]["optimizer"]) == {"name", "muon", "lr", "muons"}


def test_the_alternatives_that_are_narrowed_are_those_of_the_schema():
    sections = (OptimizerSettings, ClippingSettings, AveragingSettings)
    for key, section in zip(ALTERNATIVES, sections, strict=True):
        blocks = set(section.model_fields) - {"name"}
        assert set(ALTERNATIVES[key]) - {"none"} == blocks
