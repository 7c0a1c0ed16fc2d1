from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from wrinklefree.config.catalog import Catalog
from wrinklefree.config.parameters import Parameters
from wrinklefree.mixture.settings import Weights
from wrinklefree.schema.section import (
    MOST,
    Name,
    PackageWord,
    Section,
    Sha256,
)


def parts(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of a single value in a JSON schema, with its path."""
    if isinstance(schema, dict):
        if "type" in schema:
            yield path, schema
        for key, value in schema.items():
            if key not in ("default", "examples"):
                yield from parts(value, f"{path}/{key}")
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from parts(value, f"{path}/{index}")


@pytest.mark.parametrize("section", [Parameters, Catalog])
def test_every_number_is_bounded_above_and_below(section: type[Section]):
    found = [
        (path, part)
        for path, part in parts(section.model_json_schema())
        if part["type"] in ("integer", "number") and not part.keys() & {"enum", "const"}
    ]
    assert found
    for path, part in found:
        for side in ("inimum", "aximum"):
            limit = part.get(f"m{side}", part.get(f"exclusiveM{side}"))
            assert limit is not None, f"{path} has no m{side}"
            assert part["type"] == "number" or -(2**63) <= limit <= 2**63, path
    largest = max(part.get("maximum", 0) for _, part in found if part["type"] == "integer")
    assert largest == MOST


def test_patterns_take_no_digits_but_those_of_ascii():
    """Rust's ``\\d`` and ``\\w`` are digits and letters of all scripts."""
    for section in (Parameters, Catalog):
        for path, part in parts(section.model_json_schema()):
            assert not re.search(r"\\[dwsDWS]", part.get("pattern", "")), path


PATTERNS = [
    (Name, "a"),
    (Sha256, "0" * 64),
    (PackageWord, "a"),
    (Annotated[str, Field(pattern=r"^a$")], "a"),
]


@pytest.mark.parametrize(("kind", "valid"), PATTERNS, ids=["name", "sha256", "package", "any"])
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", " ", "\x1b", "\0", "\u2028"])
def test_nothing_passes_behind_the_end_of_a_pattern(kind: Any, valid: str, end: str):
    adapter = TypeAdapter(kind)
    assert adapter.validate_python(valid) == valid
    for wrong in (valid + end, end + valid):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)


@pytest.mark.parametrize("wrong", ["a" * 65, "a\n", "é", "A", "", "a-b", "../a", "a b", "$(a)"])
def test_a_name_is_a_short_word_also_as_a_key(wrong: str):
    TypeAdapter(Weights).validate_python({"a" * 64: 1.0})
    with pytest.raises(ValidationError):
        TypeAdapter(Weights).validate_python({wrong: 1.0})
