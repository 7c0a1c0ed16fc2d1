"""Presets: files of ``params/`` laid over ``params.yaml``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from wrinklefree.config.edit import edited_yaml
from wrinklefree.config.load import read_settings
from wrinklefree.errors import UserError
from wrinklefree.schema.load import read_yaml, without_nulls
from wrinklefree.schema.reads import READS
from wrinklefree.schema.yaml_text import is_special, parse, shown_key

FOLDER = Path("params")


def find_preset(name: str) -> Path:
    """The file of a preset, given its name or its path.

    Raises
    ------
    UserError : there is none; names those that exist.
    """
    for candidate in (FOLDER / f"{name}.yaml", Path(name)):
        if candidate.exists():
            return candidate
    if name in (*READS, "all"):
        raise UserError(
            f"{name} is a stage and no preset; name targets first: snakemake {name} --configfile"
            " PRESET, for Snakemake takes every word after --configfile for a file"
        )
    known = ", ".join(sorted(shown_key(file.stem) for file in FOLDER.glob("*.yaml"))) or "none"
    raise UserError(f"no preset {shown_key(name)}; presets in {FOLDER}/: {known}")


def lay_into(params: Path, preset: Path) -> str:
    """The text of ``params`` with ``preset`` laid over it; comments outside of it stay.

    Raises
    ------
    UserError : either file is unreadable, or the result is not valid.
    """
    changes = read_yaml(preset)
    expected = read_settings(params, preset)
    text = edited_yaml(params, partial(_lay, changes=changes))
    if without_nulls(parse(text, str(params))) != expected:
        raise UserError(
            f"{params}: {preset} would change more than it names, for an alias (*) of {params}"
            " stands for the same settings in two places; write them out there"
        )
    return text


def _lay(document: Any, changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if value is None:
            document.pop(key, None)
        elif isinstance(value, dict) and isinstance(document.get(key), dict):
            _lay(document[key], value)
            if not document[key]:
                # Behind a comment, ruamel would write the braces of what is now empty in column 1.
                document.ca.items.pop(key, None)
                document[key] = {}
        else:
            kept = without_nulls(value) if isinstance(value, dict) else value
            document[_quoted(key)] = _quoted(kept)


def _quoted(value: Any) -> Any:
    """``value`` with quotes around text that some reader of YAML takes for something else."""
    if isinstance(value, dict):
        return {_quoted(key): _quoted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_quoted(item) for item in value]
    special = isinstance(value, str) and is_special(value)
    return DoubleQuotedScalarString(value) if special else value
