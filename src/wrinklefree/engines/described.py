"""The settings of the run that took place, read from the manifests of what it made."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from wrinklefree.errors import UserError
from wrinklefree.schema.reads import narrow, reads, shaping, with_whole_architectures
from wrinklefree.tracking.artifact import MANIFEST, Manifest, read_manifest

RESULTS = ("results", "models/export", "data/report", "research/*", "research/architecture/*")
"""What the report shows, and so everything that it was made from."""
_FOLDERS = ("data/*", "data/*/*", "models/*", "models/*/*", "research/*/*", *RESULTS)


def settings_of_run(parameters: dict[str, Any]) -> dict[str, Any]:
    """``parameters`` as they were when what stands in the current folder was made.

    Parameters
    ----------
    parameters : the whole of ``params.yaml``. Sections that no stage of the run read stay.

    Raises
    ------
    UserError : nothing was made yet, or what stands there is of several runs.
    """
    run = artifacts_of_run()
    made = with_whole_architectures(copy.deepcopy(parameters))
    sections = [
        (path.split("."), manifest.settings)
        for folder, manifest in run.items()
        for path in reads(manifest.stage, folder.name)
    ]
    for keys, settings in sorted(sections, key=lambda section: len(section[0])):
        _lay(made, keys, settings)
    for folder, manifest in run.items():
        if shaping(narrow(made, manifest.stage, folder.name)) != manifest.settings:
            raise UserError(
                f"{folder} was made with other settings than other artifacts of this folder, so"
                " that no one run is there to describe; run stage"
                f" {stage_of(folder, manifest)} again"
            )
    return made


def _lay(parameters: dict[str, Any], keys: list[str], settings: dict[str, Any]) -> None:
    """Replace the section at ``keys`` by the one that ``settings`` have there."""
    *parents, last = keys
    for key in parents:
        parameters, settings = parameters.setdefault(key, {}), settings[key]
    parameters[last] = settings[last]


def artifacts_of_run() -> dict[Path, Manifest]:
    """All that the results were made from, by folder; what else lies there was not used.

    Raises
    ------
    UserError : nothing was made yet, or what stands there is of several runs.
    """
    manifests = {folder: read_manifest(folder) for folder in _artifacts(_FOLDERS)}
    places = {manifest.digest: folder for folder, manifest in manifests.items()}
    pending = _artifacts(RESULTS)
    if not pending:
        raise UserError("no results to describe yet; run snakemake or dvc repro first")
    run: dict[Path, Manifest] = {}
    while pending:
        folder = pending.pop()
        if folder in run:
            continue
        run[folder] = manifest = manifests[folder]
        for name, digest in manifest.inputs.items():
            if digest not in places:
                raise UserError(
                    f"{folder} was made from another {name} than the one that stands here now;"
                    f" run stage {stage_of(folder, manifest)} again"
                )
            pending.append(places[digest])
    return run


def _artifacts(patterns: tuple[str, ...]) -> list[Path]:
    found = {path.parent for pattern in patterns for path in Path().glob(f"{pattern}/{MANIFEST}")}
    return sorted(found)


def stage_of(folder: Path, manifest: Manifest) -> str:
    """What a message calls the stage that makes ``folder``; of an architecture its target, too."""
    target = f" (snakemake {folder.name})" if manifest.stage == "architecture" else ""
    return f"{manifest.stage}{target}"
