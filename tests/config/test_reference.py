from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from wrinklefree.config.parameters import Parameters
from wrinklefree.config.reference import DOCUMENT, SCHEMA, document_text, schema_text
from wrinklefree.schema.load import read_yaml
from wrinklefree.schema.section import Section

PROJECT = Path(__file__).parents[2]
SCHEMA_OF_PARAMS: dict[str, Any] = json.loads(schema_text())
LINES = document_text().splitlines()


def sections(section: type[Section] = Section) -> Iterator[type[Section]]:
    for below in section.__subclasses__():
        yield below
        yield from sections(below)


def rows_of(section: str) -> dict[str, str]:
    """What a reader finds of a section: rows of the sections it refers to, then its own."""
    rows: dict[str, str] = {}
    start = LINES.index(f"## {section}") + 1
    for line in takewhile(lambda line: not line.startswith("## "), LINES[start:]):
        if line.startswith("It has the settings of "):
            for other in re.findall(r"\[(\w+)\]", line):
                rows |= rows_of(other)
        elif key := re.match(r"\| `(\w+)` \|", line):
            rows[key[1]] = line
    return rows


def test_the_page_and_the_schema_say_what_the_settings_are():
    assert (PROJECT / DOCUMENT).read_text() == document_text(), "wrinklefree settings --write"
    assert (PROJECT / SCHEMA).read_text() == schema_text(), "wrinklefree settings --write"


def test_every_setting_has_a_sentence_in_the_page():
    for section, definition in {
        "All sections": SCHEMA_OF_PARAMS,
        **SCHEMA_OF_PARAMS["$defs"],
    }.items():
        rows = rows_of(section)
        assert rows.keys() == definition.get("properties", {}).keys(), section
        for row in rows.values():
            assert row.removesuffix(" |").endswith("."), f"{section}: {row}"


@pytest.mark.parametrize(
    ("section", "key", "parts"),
    [
        ("MuonSettings", "lr", ["number, > 0, ≤ 10", "`0.001`", "Peak learning rate"]),
        ("MuonSettings", "scale", ["`original`, `match_rms`", "`match_rms`"]),
        ("TrainingSettings", "steps", ["integer, > 0, ≤ 100,000,000", "required"]),
        ("DistillSettings", "steps", ["integer, > 0, ≤ 100,000,000", "required"]),
        ("Stage2DistillationSettings", "temperature", ["`1.0`"]),
        ("DistillSettings", "temperature", ["`2.0`"]),
        ("DistillSettings", "lambda_warmup", ["#lambdawarmupsettings", "`{warmup_steps: 0}`"]),
        ("MixtureSettings", "weights", ["mapping of names to number, ≥ 0", "required"]),
        ("PhaseSettings", "weights", ["mapping of names to number"]),
        ("TokenizeSettings", "processes", ["integer, > 0, ≤ 4,096 or `all`", "`all`"]),
    ],
)
def test_a_row_has_type_bounds_default_and_meaning(section: str, key: str, parts: list[str]):
    row = rows_of(section)[key]
    for part in parts:
        assert part in row, row


def test_an_editor_accepts_params_by_the_schema_that_it_names():
    text = (PROJECT / "params.yaml").read_text()
    assert text.startswith(f"# yaml-language-server: $schema={SCHEMA}\n")
    jsonschema.validate(read_yaml(PROJECT / "params.yaml"), SCHEMA_OF_PARAMS)


@pytest.mark.parametrize("wrong", [{"stepz": 3}, {"steps": 0}, {"optimizer": {"name": "sgd"}}])
def test_an_editor_marks_what_would_be_refused(wrong: dict[str, Any]):
    parameters = read_yaml(PROJECT / "params.yaml")
    parameters["stage2"] |= wrong
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(parameters, SCHEMA_OF_PARAMS)


def test_every_section_is_reachable_from_the_file():
    names = {
        section.__name__
        for section in sections()
        if not any(file in section.__module__ for file in ("catalog", "recipe", "transforms"))
    }
    abstract = {"SourceBase", "BesideAdamW", "MuonBase", "Parameters"}
    abstract |= {"QuantizedTrainingSettings", "DistillationSettings"}
    assert names - abstract == set(SCHEMA_OF_PARAMS["$defs"])
    assert Parameters.__doc__ in LINES
