"""Files of settings, by which Snakemake hands each stage its own sections."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from wrinklefree.schema.reads import narrow
from wrinklefree.tracking.files import write_atomically


def write_sections(
    parameters: dict[str, Any], stage: str, instance: str | None, folder: Path
) -> Path:
    """A file of ``folder`` that holds :func:`narrow` as JSON and is named by its digest."""
    content = json.dumps(narrow(parameters, stage, instance), sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    path = folder / f"{stage}-{digest}.json"
    if not path.is_file():
        write_atomically(path, content)
    return path
