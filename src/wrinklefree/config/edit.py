"""Editing YAML files whose comments and order must stay."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML


def edited_yaml(path: Path, edit: Callable[[Any], None]) -> str:
    """The text of ``path`` after ``edit`` changed its document in place; the file stays."""
    yaml = YAML()
    yaml.width = 10_000  # no line is broken that was not
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(path.read_text(encoding="utf-8"))
    edit(document)
    buffer = io.StringIO()
    yaml.dump(document, buffer)
    return buffer.getvalue()
