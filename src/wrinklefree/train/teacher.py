"""The dense models that teach a student, as inputs of a stage."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from wrinklefree.distill.universal import Spelling
from wrinklefree.distill.vocabulary import check_tokenizers, vocabulary_size
from wrinklefree.errors import UserError
from wrinklefree.mixture.loader import TrainingData
from wrinklefree.models.folder import CONFIG, WEIGHTS, load_model
from wrinklefree.tracking.files import sha256_of_file, sha256_of_json
from wrinklefree.tracking.stage import Stage
from wrinklefree.tracking.trainings import WORK
from wrinklefree.train.cached_teacher import CachedTeacher, LogitsCache, fill_cache
from wrinklefree.train.data import samples_per_step
from wrinklefree.train.distill_settings import BASE, DistillationSettings
from wrinklefree.train.objectives.distillation import DenseTeacher
from wrinklefree.train.objectives.question import Teacher
from wrinklefree.train.runtime import Runtime
from wrinklefree.train.settings import TrainingSettings
from wrinklefree.train.universal_teacher import UniversalTeacher

FOLDER = "teacher_logits"


def load_teachers(stage: Stage, taught: DistillationSettings) -> dict[str, PreTrainedModel]:
    """The dense models that teach, by name; raises UserError where tokenizers must not differ."""
    folders = {name: _folder(stage, name) for name in taught.teachers}
    if not taught.universal:
        for folder in folders.values():
            check_tokenizers(folder, stage.inputs["model"])
    return {name: load_model(folder, "dense")[0] for name, folder in folders.items()}


def _speaks_otherwise(teacher: Path, student: Path) -> bool:
    try:
        check_tokenizers(teacher, student)
    except UserError:
        return True
    return False


def _folder(stage: Stage, name: str) -> Path:
    if name == BASE:
        return stage.inputs["teacher"]
    if not (folder := stage.inputs["teachers"] / name).is_dir():
        raise UserError(f"{stage.inputs['teachers']} has no {name}: write it to section teachers")
    return folder


def teacher_of(
    stage: Stage,
    training: TrainingSettings,
    taught: DistillationSettings,
    data: TrainingData,
    name: str,
    model: PreTrainedModel,
    mask_token_id: int | None = None,
) -> Teacher:
    """``model``, called ``name``, as it teaches: itself, or what it says of all rows of the run.

    The latter is written into ``work/teacher_logits``, once for all trainings that read the rows.
    Raises UserError where that can't be.
    """
    kept = taught.cached_logits
    if taught.universal and _speaks_otherwise(_folder(stage, name), stage.inputs["model"]):
        if kept:
            raise UserError(
                f"cached_logits is {kept}, and teacher {name} has another tokenizer: what it says"
                " can't be written down by tokens of the student; set it to 0"
            )
        theirs, ours = Spelling(_folder(stage, name)), Spelling(stage.inputs["model"])
        return UniversalTeacher(model, theirs, ours)
    if not kept:
        return DenseTeacher(model)
    if kept >= (size := vocabulary_size(model)):
        raise UserError(
            f"cached_logits is {kept}, and the teacher has {size} tokens: lower it, or set it to 0"
        )
    if training.data.influence.enabled:
        raise UserError(
            "cached_logits needs to know the rows of the run, which data.influence chooses on the"
            " way; set one of them to its default"
        )
    runtime = Runtime.here(training.precision)
    runtime.place(model)
    model_files = [sha256_of_file(_folder(stage, name) / file) for file in (WEIGHTS, CONFIG)]
    made_from = [*model_files, kept, taught.temperature, mask_token_id, runtime.precision]
    cache = LogitsCache(WORK / FOLDER / sha256_of_json(made_from)[:16])
    samples = training.steps * samples_per_step(training)
    fill_cache(
        cache,
        model,
        data.batches_of(samples, training.batch_size),
        runtime,
        rows=sum(map(len, data.rows_of_run(samples).values())),
        kept=kept,
        temperature=taught.temperature,
        mask_token_id=mask_token_id,
        label=stage.terminal.label,
    )
    return CachedTeacher(cache, size)
