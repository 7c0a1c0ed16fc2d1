"""``params.yaml`` with presets laid over it, as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wrinklefree.config.parameters import Parameters
from wrinklefree.schema.load import overlay, read_yaml, validate_section, without_nulls


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


def validate(parameters: dict[str, Any], origin: str = "params.yaml") -> Parameters:
    """The typed settings.

    Raises
    ------
    UserError : names every key that is unknown, missing or wrong, its value and what was expected.
    """
    return validate_section(Parameters, parameters, origin)
