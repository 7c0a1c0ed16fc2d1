"""Files of settings, by which Snakemake hands each stage its own sections."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from wrinklefree.schema.reads import foreseen, narrow
from wrinklefree.tracking.files import write_atomically


def write_sections(
    parameters: dict[str, Any], stage: str, instance: str | None, folder: Path
) -> Path:
    """A file of ``folder`` that holds :func:`narrow` as JSON and is named by its digest.

    It also has what is :func:`foreseen`, by which its name does not change.
    """
    sections = narrow(parameters, stage, instance)
    digest = hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()[:16]
    content = json.dumps(foreseen(parameters, stage) | sections, sort_keys=True)
    path = folder / f"{stage}-{digest}.json"
    if not path.is_file() or path.read_text("utf-8") != content:
        write_atomically(path, content)
    return path
