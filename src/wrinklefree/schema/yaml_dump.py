"""Settings as YAML that all versions of YAML read alike."""

from __future__ import annotations

from typing import Any

import yaml

from wrinklefree.schema.yaml_text import is_special


class _Dumper(yaml.SafeDumper):
    """Text in quotes where some reader of YAML would take it for something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = '"' if is_special(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def dump_yaml(content: dict[str, Any]) -> str:
    """YAML of ``content`` in its own order; text that could be read as something else is quoted."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)
