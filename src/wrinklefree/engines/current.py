"""Whether artifacts are what the present settings and code would make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wrinklefree.engines.described import stage_of
from wrinklefree.errors import UserError
from wrinklefree.schema.reads import READS, narrow, shaping
from wrinklefree.tracking.artifact import Artifact
from wrinklefree.tracking.code import code_digest
from wrinklefree.tracking.provenance import read_provenance, record_of

SCRIPTS = Path("workflow/scripts")
SOURCE = Path("src")


def check_current(artifact: Artifact, parameters: dict[str, Any]) -> None:
    """Raise UserError if ``artifact`` was made under other settings or by other code.

    Parameters
    ----------
    parameters : the whole of ``params.yaml``. The current folder is the project's.
    """
    manifest, path = artifact.manifest, artifact.path
    record = read_provenance(record_of(path), manifest.digest)
    if record is None:
        raise UserError(
            f"{path}: {record_of(path)} does not say which code made it; run stage"
            f" {stage_of(path, manifest)} again"
        )
    several = any("{instance}" in reads for reads in READS.get(manifest.stage, ()))
    try:
        narrowed = narrow(parameters, manifest.stage, path.name if several else None)
    except UserError as error:
        raise UserError(f"{path}: params.yaml no longer has it ({error}); delete {path}") from error
    settings = shaping(narrowed)
    script = (SCRIPTS / f"{manifest.stage}.py").resolve()
    for what, made, present in (
        ("settings", manifest.settings, settings),
        ("code", record.code, code_digest(script, SOURCE.resolve())),
    ):
        if made != present:
            raise UserError(
                f"{path} was made with other {what} than the present ones;"
                f" run stage {stage_of(path, manifest)} again, or undo the edit"
            )
