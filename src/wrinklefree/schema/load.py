"""Reading YAML and a section of settings, and telling a user what is wrong with them."""

from __future__ import annotations

import difflib
import re
import warnings
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from wrinklefree.errors import UserError, shown
from wrinklefree.schema.section import Section
from wrinklefree.schema.yaml_text import parse, read_text, shown_key

_MAX_PROBLEMS = 8
_NUMBER = re.compile(r"^[+-]?\d+(\.\d*)?[eE][+-]?\d+$")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; its null entries, with which a preset removes, are kept.

    Raises
    ------
    UserError : the file can't be read, holds no mapping, or is no YAML that all versions of YAML
        read alike.
    """
    content = parse(read_text(path), str(path))
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise UserError(f"{path}: expected a mapping of settings (key: value), found {found}")
    return content


def overlay(parameters: dict[str, Any], preset: dict[str, Any]) -> dict[str, Any]:
    """``preset`` laid over ``parameters``: mappings merge, other values replace, null removes.

    These are the semantics of ``snakemake --configfile`` followed by :func:`without_nulls`.
    """
    merged = dict(parameters)
    for key, value in preset.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            merged[key] = overlay(below, value)
        else:
            merged[key] = value
    return without_nulls(merged)


def without_nulls(parameters: dict[str, Any]) -> dict[str, Any]:
    """``parameters`` without entries that are null, at any depth."""
    return {
        key: without_nulls(value) if isinstance(value, dict) else value
        for key, value in parameters.items()
        if value is not None
    }


def validate_section(section: type[Section] | Any, value: Any, origin: str) -> Any:
    """``value`` as the type ``section``; ``origin`` says where it stands.

    Raises
    ------
    UserError : names every key that is unknown, missing or wrong, its value and what was expected.
    """
    if isinstance(value, dict):
        value = without_nulls(value)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            checked = TypeAdapter(section).validate_python(value)
        except ValidationError as error:
            raise UserError(_explain(error, value, origin)) from None
    for warning in caught:
        warnings.warn(f"{origin}: {warning.message}", warning.category, stacklevel=3)
    return checked


def _explain(error: ValidationError, value: Any, origin: str) -> str:
    problems = error.errors(include_url=False)
    lines = [f"{origin}: {len(problems)} problem{'s' if len(problems) > 1 else ''}"]
    for problem in problems[:_MAX_PROBLEMS]:
        path = _locate(problem["loc"], value)
        lines.append(f"  {path or '(top level)'}: {_describe(problem)}")
    if len(problems) > _MAX_PROBLEMS:
        lines.append(f"  … and {len(problems) - _MAX_PROBLEMS} more")
    return "\n".join(lines)


def _locate(location: tuple[int | str, ...], value: Any) -> str:
    """The dotted path as in the file: pydantic adds the tag or the type of a union's member."""
    path: list[str] = []
    tagged = False
    for key in location:
        if value is not None and not isinstance(value, dict | list):
            break
        if isinstance(value, dict):
            if not tagged and key == value.get("kind"):
                tagged = True
                continue
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
        tagged = False
        path.append(shown_key(key))
    return ".".join(path)


def _describe(problem: Any) -> str:
    kind, found = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        key = str(problem["loc"][-1])
        if key in _known_keys():
            return "no setting of this place"
        close = difflib.get_close_matches(key, _known_keys(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"unknown setting{hint}"
    if kind == "missing":
        return "this setting is required and missing"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    message = problem["msg"][0].lower() + problem["msg"][1:]
    if kind == "union_tag_invalid":
        key, expected = (problem["ctx"][part] for part in ("discriminator", "expected_tags"))
        return f"{key} is {shown(problem['ctx']['tag'])}, expected one of {expected}"
    described = f"{message}; found {shown(found)} ({type(found).__name__})"
    if kind == "string_type" and not isinstance(found, dict | list):
        described += ". YAML reads what looks like a number, a date or yes and no as such: quote it"
    if isinstance(found, str) and _NUMBER.match(found):
        described += ". YAML 1.1 reads this as text: write it with a point, as 1.0e-4"
    return described


def _known_keys() -> set[str]:
    """Every name of a setting, for suggestions."""
    names: set[str] = set()
    pending: list[type] = [Section]
    while pending:
        section = pending.pop()
        names.update(getattr(section, "model_fields", {}))
        pending.extend(section.__subclasses__())
    return names
