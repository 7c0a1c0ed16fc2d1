from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wrinklefree.config.load import validate
from wrinklefree.errors import UserError
from wrinklefree.schema.load import read_yaml, validate_section
from wrinklefree.text.clean.settings import CleaningSettings
from wrinklefree.text.documents.settings import CleaningSteps

LOCAL = {"kind": "local"}
DATATROVE = {"kind": "datatrove"}
SLURM = {"partition": "cpu", "time": "2:00:00"}
FILES = {"kind": "files", "domain": "d", "licence": "l", "paths": ["a"], "sha256": "0" * 64}

GENERATED = {"kind": "generated", "domain": "d", "licence": "l", "generator": "mathematics"}
GENERATED |= {"documents": 500, "seed": 1}


def test_only_what_a_source_sets_differs_from_the_general_settings() -> None:
    general = CleaningSettings.model_validate(
        {
            "engine": LOCAL,
            "min_characters": 7,
            "language": {"code": "de", "min_probability": 0.9},
            "decontamination": {"enabled": False},
        }
    )
    own = CleaningSteps.model_validate(
        # The value of the schema's default counts, where it is written down.
        {"language": {"code": "en"}, "decontamination": {"enabled": True, "ngram": 9}}
    )
    steps = general.steps_for(own)
    assert steps.min_characters == 7
    assert steps.language.model_dump() == {"enabled": True, "code": "en", "min_probability": 0.9}
    assert (steps.decontamination.enabled, steps.decontamination.ngram) == (True, 9)
    assert general.steps_for(None).language.code == "de"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"engine": LOCAL, "near_duplicates": {"enabled": True}}, "engine.kind: datatrove"),
        ({"engine": LOCAL, "min_characters": 9, "max_characters": 8}, "no document would stay"),
        ({"engine": {**DATATROVE, "executor": "slurm"}}, "at least partition and time"),
        ({"engine": {**DATATROVE, "slurm": SLURM}}, "executor: slurm only"),
        ({"engine": LOCAL, "references": {"a": {**FILES, "max_tokens": 5}}}, "a.max_tokens"),
        ({"engine": LOCAL, "references": {"a": {**FILES, "cleaning": {}}}}, "a.cleaning"),
        ({"engine": LOCAL, "references": {"a": {**FILES, "held_out_pattern": "x"}}}, "pattern"),
        (
            {"engine": LOCAL, "references": {"a": {**GENERATED, "held_out_levels": [4]}}},
            "a.held_out_levels has no meaning",
        ),
        ({"engine": LOCAL, "language": {"code": "English"}}, "language.code"),
        ({"engine": LOCAL, "quality": {"enabled": True, "good": ["a"]}}, "must each name a source"),
        ({"engine": LOCAL, "quality": {"good": ["a"], "bad": ["a"]}}, "a is in good and in bad"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        validate_section(CleaningSettings, settings, "cleaning")


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"near_duplicates": {"enabled": True}}, r"sources\.code\.cleaning, near_duplicates"),
        ({"max_characters": 1}, r"sources\.code\.cleaning, laid over.*min_characters 2"),
    ],
)
def test_own_settings_must_go_together_with_the_general_ones(
    own: dict[str, Any], expected: str
) -> None:
    parameters = read_yaml(Path(__file__).parents[3] / "params.yaml")
    parameters["cleaning"]["min_characters"] = 2
    parameters["sources"]["code"]["cleaning"] = own
    with pytest.raises(UserError, match=expected):
        validate(parameters)


QUALITY = {"enabled": True, "good": ["encyclopaedic"], "bad": ["code"]}


@pytest.mark.parametrize(
    ("general", "own", "expected"),
    [
        (
            {"bad": ["web"]},
            None,
            "encyclopaedic learns from web, which is no source; sources: code",
        ),
        ({}, {"bad": ["web"]}, "source code learns from web"),
        ({"enabled": False}, None, "judges no source"),
        ({"enabled": False}, {"enabled": True, "good": ["code"], "bad": ["maths"]}, "judges no"),
    ],
)
def test_a_quality_filter_that_cannot_work_is_refused(
    general: dict[str, Any], own: dict[str, Any] | None, expected: str
) -> None:
    parameters = read_yaml(Path(__file__).parents[3] / "params.yaml")
    parameters["cleaning"]["quality"] = QUALITY
    validate(parameters)
    parameters["cleaning"]["quality"] = QUALITY | general
    if own:
        parameters["sources"]["code"]["cleaning"]["quality"] = own
    with pytest.raises(UserError, match=expected):
        validate(parameters)


def test_references_that_nothing_looks_for_are_refused() -> None:
    parameters = read_yaml(Path(__file__).parents[3] / "params.yaml")
    parameters["cleaning"] |= {"references": {"a": FILES}, "decontamination": {"enabled": False}}
    with pytest.raises(UserError, match="references are looked for by decontamination"):
        validate(parameters)
    parameters["sources"]["code"]["cleaning"]["decontamination"] = {"enabled": True}
    validate(parameters)
