from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ruamel.yaml import YAML

from wrinklefree.config.load import each_by_itself, validate
from wrinklefree.errors import UserError
from wrinklefree.schema.load import overlay, read_yaml, without_nulls

PROJECT = Path(__file__).parents[2]
PRESETS = sorted((PROJECT / "params").glob("*.yaml"))


@pytest.fixture
def parameters() -> dict[str, Any]:
    return read_yaml(PROJECT / "params.yaml")


def changed(parameters: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    result = copy.deepcopy(parameters)
    section = result
    *parents, last = path.split(".")
    for key in parents:
        section = section.setdefault(key, {})
    section[last] = value
    return result


@pytest.mark.parametrize("file", [PROJECT / "params.yaml", *PRESETS], ids=lambda file: file.name)
def test_yaml_1_1_and_1_2_read_the_same_settings(file: Path):
    text = file.read_text()
    assert yaml.safe_load(text) == YAML(typ="safe").load(text)


@pytest.mark.filterwarnings("ignore::wrinklefree.optim.settings.UnusualLearningRateWarning")
@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.stem)
def test_presets_are_valid_over_the_default(parameters: dict[str, Any], file: Path):
    validate(overlay(parameters, read_yaml(file)))


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("base.scratch.training.compile", True, "compile"),
        ("distill.ar.compile", True, "compile"),
        ("stage2.future_tokens", {"heads": 2}, "future_tokens"),
        ("subln.prune", {"layers": 1}, "subln.prune"),
        ("subln.mixture_of_depths", {"every": 2}, "subln.mixture_of_depths"),
    ],
)
def test_what_layers_with_a_state_cannot_do_is_refused_when_settings_are_read(
    parameters: dict[str, Any], path: str, value: Any, named: str
):
    hybrid = changed(parameters, "base.scratch.model.state_space", STATES)
    hybrid = changed(hybrid, "dlm.enabled", False)
    with pytest.raises(UserError, match=f"state_space can't be together with {named}:"):
        validate(changed(hybrid, path, value))


def test_layers_with_experts_leave_no_tokens_out_which_is_said_when_settings_are_read(
    parameters: dict[str, Any],
):
    depths = changed(parameters, "subln.mixture_of_depths", {"every": 2})
    depths = changed(changed(depths, "dlm.enabled", False), "export.linear_class", "none")
    validate(depths)
    experts = {"count": 4, "per_token": 2, "intermediate_size": 32}
    with pytest.raises(UserError, match=r"depths can't be together with base.scratch.model.exp"):
        validate(changed(depths, "base.scratch.model.experts", experts))


GGUF = {"kind": "gguf", "package": "a", "version": "1", "sha256": "0" * 64, "member": "a.gguf"}
STATES = {"attention_layers": [1], "heads": 4}
QWEN = {
    "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 100,
    "tie_word_embeddings": True,
}  # fmt: skip
DENSE = {"base": {"model": {"intermediate_size": 256, "layers": 2}}}
MISTAKES = [
    (
        "base.scratch.model.state_space",
        STATES,
        ["state_space can't be together with dlm.enabled", "set dlm.enabled and"],
    ),
    (
        "subln.mixture_of_depths",
        {"every": 2},
        ["mixture_of_depths can't be together with dlm.enabled, export.linear_class: set"],
    ),
    ("subln", {"mixture_of_depths": {}, "reconstruct": {"kind": "layers"}}, ["leave out one"]),
    ("world_model.model.state_space", STATES, ["world_model", "states read one; leave it out"]),
    ("stage2.stepz", 3, ["stage2.stepz", "unknown setting", "did you mean steps"]),
    ("stage2.steps", "many", ["stage2.steps", "valid integer", "'many'"]),
    ("stage2.steps", 0, ["stage2.steps", "greater than 0"]),
    ("stage2.optimizer.muon.lr", "1e-3", ["stage2.optimizer.muon.lr", "write it with a point"]),
    ("distill.ar.teachers", {"huge": 1.0}, ["distill.ar.teachers names huge", "of: base"]),
    ("finetune.distillation.teachers", {"huge": 1.0}, ["finetune.distillation.teachers names"]),
    ("teachers", {"base": {"source": GGUF}}, ["a teacher is called base"]),
    ("stage2.optimizer.steps", 3, ["stage2.optimizer.steps", "no setting of this place"]),
    ("stage2.optimizer.muon.lrr", 0.1, ["stage2.optimizer.muon.lrr", "unknown setting"]),
    (
        "stage2.optimizer.lr",
        0.002,
        ["stage2.optimizer: lr stands in the block of an optimizer", "adamw, muon, muonclip"],
    ),
    ("stage2.optimizer.name", "sgd", ["stage2.optimizer", "'muon'", "sgd"]),
    ("mixture.weights.code", 0.3, ["mixture", "weights sum to 1.2", "expected 1"]),
    ("mixture.weights.code", float("nan"), ["mixture.weights.code", "nan"]),
    ("mixture.max_repetition", float("inf"), ["mixture.max_repetition", "finite number", "inf"]),
    ("stage2.optimizer.muon.lr", float("inf"), ["stage2.optimizer.muon.lr", "finite number"]),
    ("mixture.sequence_length", 2**20 + 1, ["mixture.sequence_length", "1048576"]),
    ("tokenize.processes", 0, ["  tokenize.processes: input should be greater than 0"]),
    ("mixture.weights.web", 0.0, ["mixture.weights names web", "no source has that domain"]),
    ("sources.code.sha256", "abc", ["sources.code.sha256", "pattern"]),
    ("sources.code.version", 1.1, ["sources.code.version", "valid string", "quote it"]),
    ("cleaning.language.code", False, ["cleaning.language.code", "valid string", "quote it"]),
    ("sources.code.fetch_bytes_per_token", float("inf"), ["finite number"]),
    ("sources.code.held_out_pattern", "", ["held_out_pattern", "at least 1 character"]),
    ("held_out.fraction", 1.0, ["held_out.fraction", "less than 1"]),
    ("sources.code.sha", "abc", ["sources.code.sha", "unknown setting"]),
    ("tokenizer", {"kind": "base"}, ["tokenizer.kind is base", "scratch"]),
    (
        "stage2.lambda_warmup.warmup_steps",
        200,
        ["stage2: lambda_warmup.warmup_steps is 200", "200"],
    ),
    ("distill.ar.lambda_warmup.warmup_steps", 140, ["distill.ar: lambda_warmup", "steps 140"]),
    ("dlm.schedule.warmup_steps", 70, ["dlm: schedule.warmup_steps is 70", "steps 70"]),
    ("base.scratch.training.steps", 20, ["base.scratch.training: schedule.warmup_steps is 20"]),
    ("base.scratch.model.heads", 5, ["base.scratch.model: hidden_size 256 over heads 5", "even"]),
    ("base.scratch.model.hidden_size", 36, ["hidden_size 36 over heads 4", "even number"]),
    ("base.scratch.model.key_value_heads", 3, ["heads 4 is no multiple of key_value_heads 3"]),
    (
        "distill.dlm.weights",
        {"cross_entropy": 0.0, "logits": 0.0, "relations": 0.0},
        ["distill.dlm: all weights are 0"],
    ),
    (
        "distill.ar.relations",
        None,
        ["distill.ar: the relations term has weight or ratio 1", "heads"],
    ),
    ("evaluate.prompts", ["a", ""], ["evaluate.prompts.1", "at least 1 character"]),
    ("stage2.optimizer.muon.momentum", 1.0, ["stage2.optimizer.muon.momentum", "less than 1"]),
    ("stage2.optimizer.muon.adamw_betas", [0.9, 1.0], ["muon.adamw_betas.1", "less than 1"]),
    (
        "stage2.optimizer",
        {"name": "muon", "adamw": {"betas": [1.0, 0.9]}},
        ["stage2.optimizer.adamw.betas.0", "less than 1"],
    ),
    ("dlm.clipping.zclip.ema_decay", 1.0, ["dlm.clipping.zclip.ema_decay", "less than 1"]),
    ("dlm.zclip.enabled", False, ["dlm: zclip stands in clipping", "clipping: {name: none}"]),
    ("dlm.diffusion.block_size", 257, ["dlm.diffusion.block_size is 257", "sequence_length 256"]),
    (
        "base.source",
        {"kind": "hub", "repository": "a/b", "revision": "main"},
        ["base.source.revision", "main", "[0-9a-f]{40}"],
    ),
    ("subln.prune.layers", 5, ["subln.prune.layers is 5, but base.scratch.model has 4"]),
    ("subln.prune.intermediate_size", 769, ["subln.prune.intermediate_size is 769", "has 768"]),
    ("resources.model", QWEN, ["resources.model is the shape of a base that is brought"]),
    ("sources.code.package", "sympy\n--pre", ["sources.code.package", "pattern"]),
    ("sources.code.package", "-r", ["sources.code.package", "pattern"]),
    ("sources.code.version", "1.14.0\n", ["sources.code.version", "pattern"]),
    ("base.source", {**GGUF, "package": "a b"}, ["base.source.package", "pattern"]),
    ("base.source", {**GGUF, "version": "1 --pre"}, ["base.source.version", "pattern"]),
    *(
        (path, value, [path, "less than or equal to"])
        for path, value in {
            "cleaning.decontamination.ngram": 10**9,
            "stage2.steps": 10**30,
            "stage2.batch_size": 2**31,
            "stage2.gradient_accumulation_steps": 2**31,
            "stage2.optimizer.muon.lr": 1e300,
            "stage2.optimizer.muon.weight_decay": 1e300,
            "dlm.diffusion.block_size": 2**31,
            "distill.ar.temperature": 1e300,
            "distill.ar.weights.logits": 1e300,
            "base.scratch.model.hidden_size": 2**31,
            "base.scratch.model.layers": 10**12,
            "base.scratch.model.initializer_range": 1e300,
            "tokenizer.vocabulary_size": 2**32,
            "tokenize.shard_megabytes": 10**12,
            "mixture.max_repetition": 1e300,
            "evaluate.new_tokens": 10**12,
            "regmix.threads": 10**6,
            "regmix.fit.candidates": 10**12,
            "regmix.draw.concentration_max": 1e300,
            "sources.maths.documents": 10**30,
        }.items()
    ),
    ("seed", 2**63, ["seed", "less than 9223372036854775808"]),
    ("base.scratch.model.rope_theta", 1e-300, ["rope_theta", "greater than or equal to 1"]),
    ("distill.ar.temperature", 1e-300, ["temperature", "greater than or equal to 0.01"]),
    ("stage2.steps", 10**5000, ["stage2.steps", "a number of more than 4,300 digits"]),
    ("stage2.steps", "x" * 10**6, ["stage2.steps", "valid integer", "… xxx"]),
    ("sources.code.licence", "x" * 10**6, ["sources.code.licence", "at most 100000 characters"]),
    ("stage2.gain\x1b[31m", 1, [r"stage2.'gain\x1b[31m'", "unknown setting"]),
    ("sources.code.sha256", "\x1b[31m", ["sources.code.sha256", r"'\x1b[31m'"]),
    ("sources.code.held_out_pattern", "(\x1b[31m" + "x" * 10**4, [r"'(\x1b[31mxxx"]),
    ("sources.code.held_out_pattern", "a{99999999999}", ["is not a regular expression: the rep"]),
    ("sources.code.held_out_pattern", "(" * 9999 + ")" * 9999, ["is not a regular expression"]),
    ("stage2.optimizer.name", "\x1b[31m", ["stage2.optimizer", r"'\x1b[31m'"]),
    ("stage2.optimizer.name", "x" * 10**6, ["stage2.optimizer"]),
    ("mixture.weights.\x1b[31m", 0.0, [r"mixture.weights.'\x1b[31m'", "pattern"]),
    ("mixture.weights." + "x" * 10**6, 0.0, ["mixture.weights.'xxx", "at most 64 characters"]),
    ("mixture.weights.code\n", 0.0, [r"mixture.weights.'code\n'", "pattern"]),
]


@pytest.mark.parametrize(("path", "value", "expected"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_named_with_its_place_and_what_was_expected(
    parameters: dict[str, Any], path: str, value: Any, expected: list[str]
):
    with pytest.raises(UserError) as caught:
        validate(changed(parameters, path, value))
    message = str(caught.value)
    assert message.startswith("params.yaml: ")
    assert len(message.splitlines()) <= 4
    assert len(message) < 600 and "\x1b" not in message
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("stage2.lambda_warmup.warmup_steps", 199),
        ("dlm.schedule.warmup_steps", 69),
        ("dlm.diffusion.block_size", 256),
        ("base.scratch.model.heads", 128),
        ("subln.prune", {"layers": 4, "intermediate_size": 768}),
        ("distill.ar.weights", {"cross_entropy": 0.0, "logits": 0.0, "relations": 0.1}),
        ("sources.code.version", "2.0.0rc1+cpu.x86_64"),
    ],
)
def test_the_last_value_before_a_mistake_is_accepted(
    parameters: dict[str, Any], path: str, value: Any
):
    validate(changed(parameters, path, value))


def test_null_entries_are_read_for_a_preset_removes_with_them(tmp_path: Path):
    file = tmp_path / "preset.yaml"
    file.write_text("a: null\nb: {c: null}\n")
    assert read_yaml(file) == {"a": None, "b": {"c": None}}


def test_an_adamw_rate_with_muon_is_refused(parameters: dict[str, Any]):
    optimizer = {"name": "muon", "muon": {"lr": 0.0003, "adamw_lr": 0.0003, "scale": "original"}}
    with pytest.raises(UserError, match="lr 0.0003 is outside 0.001..0.003"):
        validate(changed(parameters, "stage2.optimizer", optimizer))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("each.moe.stage2.stepz", 3, r"each.moe, laid .*\n  stage2.stepz: unknown"),
        ("shared.base.training.steps", 0, r"base.scratch.training.steps: .* greater than 0"),
        ("each.hybrid.dlm.enabled", True, "state_space can't be together with dlm.enabled"),
        ("shared.teachers", {}, "shared.teachers: no setting of this place"),
        ("each.stage2", {}, "each.stage2 is called as a stage is; rename it"),
        ("each.clean_source", {}, "each.clean_source is called as a stage is; rename it"),
    ],
)
def test_an_architecture_is_checked_as_a_run_is(
    parameters: dict[str, Any], path: str, value: Any, said: str
):
    with pytest.raises(UserError, match=said):
        validate(changed(parameters, f"architectures.{path}", value))


def test_an_architecture_takes_no_setting_from_the_run(parameters: dict[str, Any]):
    del parameters["architectures"]["shared"]["stage2"]
    with pytest.raises(UserError, match=r"laid over shared: 1 problem\n  stage2.*required"):
        validate(changed(parameters, "architectures.each", {"dense": DENSE}))


def test_scratch_settings_of_a_pretrained_base_are_refused(parameters: dict[str, Any]):
    source = {"kind": "hub", "repository": "a/b", "revision": "0" * 40}
    with pytest.raises(UserError, match="scratch must be left out"):
        validate(changed(parameters, "base.source", source))


def test_a_missing_setting_is_named(parameters: dict[str, Any]):
    del parameters["stage2"]["schedule"]
    with pytest.raises(UserError, match=r"stage2\.schedule: this setting is required"):
        validate(parameters)


def test_pretrained_base_with_a_new_tokenizer_is_refused(parameters: dict[str, Any]):
    base = {"source": {"kind": "hub", "repository": "a/b", "revision": "0" * 40}}
    with pytest.raises(UserError, match="use tokenizer.kind: base"):
        validate(changed(parameters, "base", base))


def test_overlay_merges_replaces_and_removes():
    below = {"a": {"x": 1, "y": 2}, "b": [1, 2], "c": 3}
    above = {"a": {"x": None, "z": {"w": 4, "v": None}}, "b": [5]}
    assert overlay(below, above) == {"a": {"y": 2, "z": {"w": 4}}, "b": [5], "c": 3}
    assert below["a"] == {"x": 1, "y": 2}


def test_overlay_is_what_snakemake_does_with_a_second_configfile(parameters: dict[str, Any]):
    from snakemake.utils import update_config

    for file in PRESETS:
        theirs = copy.deepcopy(parameters)
        update_config(theirs, read_yaml(file))
        assert without_nulls(theirs) == overlay(parameters, read_yaml(file))


def missing_or_other(expected: Any, found: Any, path: str = "") -> list[str]:
    if isinstance(expected, dict) and isinstance(found, dict):
        return [
            line
            for key, value in expected.items()
            for line in missing_or_other(value, found.get(key), f"{path}.{key}")
        ]
    return [] if expected == found else [f"{path[1:]} is {found}, expected {expected}"]


def test_a_default_of_the_schema_does_not_change_the_default_run(parameters: dict[str, Any]):
    file = PROJECT / "tests" / "config" / "default_run.json"
    resolved = validate(parameters).model_dump(mode="json")
    assert not missing_or_other(json.loads(file.read_text()), resolved)


@pytest.mark.filterwarnings("error::wrinklefree.optim.settings.UnusualLearningRateWarning")
def test_the_guard_on_rates_watches_the_pipeline_and_finds_its_rates_usual(
    parameters: dict[str, Any],
):
    checked = validate(parameters)
    assert checked.base.scratch
    trainings = [checked.base.scratch.training, checked.stage2, checked.dlm]
    for training in (*trainings, checked.distill.ar, checked.distill.dlm):
        assert not training.optimizer.chosen.allow_unusual_lr


TRAININGS = [
    "base.scratch.training",
    "stage2",
    "dlm",
    "distill.ar",
    "distill.dlm",
    "regmix.training",
    "microanneal.training",
]


@pytest.mark.filterwarnings("error::wrinklefree.optim.settings.UnusualLearningRateWarning")
@pytest.mark.parametrize("path", TRAININGS)
@pytest.mark.parametrize("name", ["adamw", "muonclip"])
def test_one_value_swaps_the_optimizer_of_any_training(
    parameters: dict[str, Any], path: str, name: str
):
    section: Any = parameters
    for key in path.split("."):
        section = section[key]
    assert "name" in section["optimizer"], "dvc exp run -S changes only what is written"
    section: Any = validate(changed(parameters, f"{path}.optimizer.name", name))
    for key in path.split("."):
        section = getattr(section, key)
    assert section.optimizer.chosen is getattr(section.optimizer, name)


@pytest.mark.parametrize("granularity", ["head", "row", "group"])
@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
def test_scales_that_the_export_cannot_hold_are_refused_unless_there_is_none(
    parameters: dict[str, Any], granularity: str, linear_class: str
):
    asked = changed(parameters, "subln.quantizer.granularity", granularity)
    for wrong in (asked, changed(asked, "export.linear_class", linear_class)):
        with pytest.raises(UserError, match=f"granularity is {granularity}, but .* none to go"):
            validate(wrong)
    found = validate(changed(asked, "export.linear_class", "none"))
    assert found.subln.quantizer.granularity == granularity


def test_a_strength_that_would_undo_a_reconstruction_is_refused(parameters: dict[str, Any]):
    asked = changed(parameters, "subln.reconstruct", {"kind": "layers"})
    with pytest.raises(UserError, match="warmup_steps is 20, but subln.reconstruct .* set it to 0"):
        validate(asked)
    validate(changed(asked, "stage2.lambda_warmup.warmup_steps", 0))


@pytest.mark.parametrize("scale", ["absmean", "least_squares", "learned"])
def test_one_value_swaps_the_scale(parameters: dict[str, Any], scale: str):
    found = validate(changed(parameters, "subln.quantizer.scale", scale))
    assert (found.subln.quantizer.scale, found.subln.quantizer.granularity) == (scale, "tensor")


@pytest.mark.parametrize(
    "name", ["base.scratch.model.hidden_size", "base.scratch.model.intermediate_size",
             "subln.prune.intermediate_size"],
)  # fmt: skip
def test_groups_that_do_not_fit_the_model_from_scratch_are_refused(
    parameters: dict[str, Any], name: str
):
    asked = changed(parameters, "export.linear_class", "none")
    asked = changed(asked, name, 64 * 5)
    validate(changed(asked, "subln.quantizer", {"granularity": "group", "group_size": 64}))
    validate(changed(asked, "subln.quantizer", {"granularity": "row"}))
    with pytest.raises(UserError, match=rf"{name} is 320, no multiple of .* 128"):
        validate(changed(asked, "subln.quantizer", {"granularity": "group"}))


def test_a_licence_of_the_base_is_of_one_that_is_brought(parameters: dict[str, Any]):
    asked = changed(parameters, "export", {"base_licence": "Apache-2.0"})
    with pytest.raises(UserError, match=r"base_licence is Apache-2.0, but base.source.kind is scr"):
        validate(asked)
    asked = changed(changed(asked, "base", {"source": GGUF}), "tokenizer", {"kind": "base"})
    assert validate(asked).export.base_licence == "Apache-2.0"


def test_sections_of_a_run_need_not_agree_with_those_of_params_by_now(parameters: dict[str, Any]):
    with pytest.raises(UserError, match="mixture.weights"):
        validate(changed(parameters, "mixture.weights", {"prose": 1.0}))
    by_itself = each_by_itself(changed(parameters, "mixture.weights", {"prose": 1.0}))
    whole = validate(parameters).model_dump()
    assert by_itself == whole | {"mixture": {**whole["mixture"], "weights": {"prose": 1.0}}}
    with pytest.raises(UserError, match="mixture.weight: no setting"):
        each_by_itself(changed(parameters, "mixture.weight", 1))
