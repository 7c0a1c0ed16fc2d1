"""``params.yaml`` with presets laid over it, as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import create_model

from wrinklefree.config.parameters import Parameters
from wrinklefree.schema.load import overlay, read_yaml, validate_section, without_nulls
from wrinklefree.schema.section import Section


def read_settings(params: Path, *presets: Path) -> dict[str, Any]:
    """The mapping in ``params`` with presets laid over it, checked.

    Raises
    ------
    UserError : a file can't be read, or they are not valid together.
    """
    parameters = without_nulls(read_yaml(params))
    for preset in presets:
        parameters = overlay(parameters, read_yaml(preset))
    validate(parameters, origin=" with ".join(map(str, (params, *presets))))
    return parameters


def each_by_itself(parameters: dict[str, Any], origin: str = "params.yaml") -> dict[str, Any]:
    """Every section with its defaults, for a run that took place: what holds between sections need
    not hold between those that it read and those that params.yaml has by now.

    Raises
    ------
    UserError : as :func:`validate`.
    """
    fields: Any = {name: (of.annotation, of) for name, of in Parameters.model_fields.items()}
    sections = create_model("Sections", __base__=Section, **fields)
    return validate_section(sections, parameters, origin).model_dump()


def validate(parameters: dict[str, Any], origin: str = "params.yaml") -> Parameters:
    """The typed settings.

    Raises
    ------
    UserError : names every key that is unknown, missing or wrong, its value and what was expected.
    """
    return validate_section(Parameters, parameters, origin)
