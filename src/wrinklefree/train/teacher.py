"""The dense model that teaches a student, as an input of a stage."""

from __future__ import annotations

from transformers import PreTrainedModel

from wrinklefree.distill.vocabulary import check_tokenizers, vocabulary_size
from wrinklefree.errors import UserError
from wrinklefree.mixture.loader import TrainingData
from wrinklefree.models.folder import WEIGHTS, load_model
from wrinklefree.tracking.files import sha256_of_file, sha256_of_json
from wrinklefree.tracking.stage import Stage
from wrinklefree.tracking.trainings import WORK
from wrinklefree.train.cached_teacher import CachedTeacher, LogitsCache, fill_cache
from wrinklefree.train.data import samples_per_step
from wrinklefree.train.distill_settings import DistillationSettings
from wrinklefree.train.objectives.distillation import DenseTeacher
from wrinklefree.train.objectives.question import Teacher
from wrinklefree.train.runtime import Runtime
from wrinklefree.train.settings import TrainingSettings

FOLDER = "teacher_logits"


def load_teacher(stage: Stage) -> PreTrainedModel:
    """The dense model of the input ``teacher``; raises UserError where tokenizers differ."""
    check_tokenizers(stage.inputs["teacher"], stage.inputs["model"])
    return load_model(stage.inputs["teacher"], "dense")[0]


def teacher_of(
    stage: Stage,
    training: TrainingSettings,
    taught: DistillationSettings,
    data: TrainingData,
    model: PreTrainedModel,
    mask_token_id: int | None = None,
) -> Teacher:
    """``model`` as it teaches in a stage: itself, or what it says of all rows of the run.

    The latter is written into ``work/teacher_logits``, once for all trainings that read the rows.
    Raises UserError where that can't be.
    """
    if not (kept := taught.cached_logits):
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
    weights = sha256_of_file(stage.inputs["teacher"] / WEIGHTS)
    made_from = [weights, kept, taught.temperature, mask_token_id, runtime.precision]
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
