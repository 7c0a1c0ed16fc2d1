"""The ``architecture`` stage: another model than the run's goes the same way, on the same text."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wrinklefree.evaluate.scores import LABELS
from wrinklefree.evaluate.stage import EXPORTED, compare_models
from wrinklefree.models.subln_stage import make_ternary
from wrinklefree.research.architecture_settings import ArchitectureSettings
from wrinklefree.research.part_of_stage import part_of
from wrinklefree.tracking.artifact import MANIFEST, MARKER, Origin, writing_artifact
from wrinklefree.tracking.stage import Stage, StageFunction
from wrinklefree.train.base import NoExportWarning, make_base
from wrinklefree.train.distill import distill_student
from wrinklefree.train.dlm import convert_to_diffusion
from wrinklefree.train.history import HISTORY
from wrinklefree.train.stage2 import continue_pretraining


@dataclass(frozen=True)
class _Step:
    """A stage of the pipeline that makes one of the models."""

    stage: str
    function: StageFunction
    inputs: dict[str, str]
    """Model by name of the input, beside those of the architecture's own stage."""
    instance: str | None = None


_STEPS = {
    "base": _Step("base", make_base, {}),
    "subln": _Step("subln", make_ternary, {"model": "base"}),
    "stage2": _Step("stage2", continue_pretraining, {"model": "subln", "teacher": "base"}),
    "distill_ar": _Step("distill", distill_student, {"model": "stage2", "teacher": "base"}, "ar"),
    "dlm": _Step("dlm", convert_to_diffusion, {"model": "stage2"}),
    "distill_dlm": _Step("distill", distill_student, {"model": "dlm", "teacher": "base"}, "dlm"),
}
"""By model. Seeds are those of the pipeline's stages, and so are rows and results."""


def train_architecture(stage: Stage) -> dict[str, Any]:
    """Run the stages from ``base`` to ``evaluate`` for another model, into ``stage.folder``.

    Models that were made before the stage was killed are not made again.

    Returns
    -------
    Facts: those of ``evaluate``.

    Files
    -----
    Those of ``evaluate`` (see :func:`wrinklefree.evaluate.stage.evaluate_models`),
    ``<model>/history.jsonl`` of every training, and in ``distill_ar/`` the distilled student, as it
    is in ``models/distill/ar``.
    """
    own = stage.section(f"architectures.each.{stage.instance}", ArchitectureSettings)
    stage = replace(stage, settings={"seed": stage.settings["seed"], **own.of_run()})
    models: dict[str, Path] = {}
    for name in _STEPS:
        models[name] = _made(stage, name, models)
    comparison = replace(stage, name="evaluate", instance=None, inputs=stage.inputs | models)
    facts = compare_models(comparison)
    for name, path in models.items():
        if name == EXPORTED:
            no_artifact = shutil.ignore_patterns(MANIFEST, MARKER)  # but a part of this one
            shutil.copytree(path, stage.folder / name, ignore=no_artifact)
        elif (path / HISTORY).is_file():
            (stage.folder / name).mkdir()
            shutil.copy(path / HISTORY, stage.folder / name)
    return facts


def _made(stage: Stage, name: str, models: dict[str, Path]) -> Path:
    """The folder of model ``name``, in the work folder; ``models`` are those made before it."""
    step, path = _STEPS[name], stage.work / "models" / name
    if (path / MANIFEST).is_file():
        return path
    inputs = stage.inputs | {key: models[model] for key, model in step.inputs.items()}
    origin = Origin(stage=step.stage, inputs={}, settings=stage.settings)
    with writing_artifact(path, origin) as (folder, facts), warnings.catch_warnings():
        warnings.simplefilter("ignore", NoExportWarning)  # nothing is exported
        part = part_of(stage, name, LABELS[name], folder)
        part = replace(part, name=step.stage, instance=step.instance, inputs=inputs)
        facts.update(step.function(part))
    shutil.rmtree(part.work, ignore_errors=True)
    return path
