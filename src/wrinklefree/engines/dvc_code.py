"""The folders of code that each stage of a ``dvc.yaml`` depends on, kept equal to its imports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wrinklefree.config.edit import edited_yaml
from wrinklefree.tracking.code import PACKAGE, code_parts

PIPELINES = (Path("dvc.yaml"), Path("research/dvc.yaml"))
"""In the project's folder. `dvc repro` runs the first; the other is run where it is named."""
_SCRIPTS = "workflow/scripts/"


def with_current_code(dvc_yaml: Path, project: Path) -> str:
    """The text of ``dvc_yaml`` with every stage's code dependencies as they are now.

    Other dependencies, comments and order stay. Its stages run in the folder ``project``.
    """

    def update(document: Any) -> None:
        for stage in document["stages"].values():
            _update(stage.get("do", stage), project)

    return edited_yaml(dvc_yaml, update)


def _update(stage: Any, project: Path) -> None:
    script = next((dep for dep in stage["deps"] if dep.startswith(_SCRIPTS)), None)
    if script is None:  # `check` must not make all stages depend on the whole schema
        return
    parts = code_parts(project / script, project / "src")
    code = [part.relative_to(project).as_posix() for part in parts]
    others = [dep for dep in stage["deps"] if not dep.startswith((_SCRIPTS, f"src/{PACKAGE}/"))]
    wanted = others + code
    if list(stage["deps"]) != wanted:
        stage["deps"][:] = wanted
