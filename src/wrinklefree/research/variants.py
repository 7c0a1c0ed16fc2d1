"""One training of an experiment: a variant with a seed."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import Any

from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.evaluate.history import History, read_history
from wrinklefree.evaluate.loss_noise import loss_noise
from wrinklefree.evaluate.scores import HeldOutScores, domain_score, overall_score
from wrinklefree.mixture.few_rows import first_training_rows
from wrinklefree.mixture.loader import HeldOutData, TrainingData
from wrinklefree.mixture.rows import read_mixture
from wrinklefree.models.calibration import calibrate_subln
from wrinklefree.models.dense import build_scratch
from wrinklefree.models.folder import write_json
from wrinklefree.models.reconstruct import reconstruct_layers
from wrinklefree.models.settings import ReconstructSettings
from wrinklefree.models.surgery import insert_bitlinear, insert_subln
from wrinklefree.quant.settings import QuantizerSettings
from wrinklefree.research.interventions import (
    OPERATIONS,
    UNMOVED,
    Bfloat16Parameters,
    GradientSpike,
    StepOperations,
    UnmovedWeights,
    round_to_bfloat16,
)
from wrinklefree.research.measure import measure_held_out, require_documents, shared_seed
from wrinklefree.research.part_of_stage import part_of
from wrinklefree.research.registry import SHARED_TRAINING, Experiment, Variant
from wrinklefree.research.settings import ExperimentRunsSettings
from wrinklefree.schema.load import overlay
from wrinklefree.tracking.stage import Stage
from wrinklefree.tracking.trainings import checkpoints_in
from wrinklefree.train.data import arrange, open_data
from wrinklefree.train.distill_settings import DistillationSettings
from wrinklefree.train.history import write_history
from wrinklefree.train.hooks import Hook, Movement
from wrinklefree.train.in_stage import stage_trainer
from wrinklefree.train.objectives.distillation import distillation
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.objectives.objective import Objective
from wrinklefree.train.settings import (
    CurriculumDecayWarning,
    QuantizedTrainingSettings,
    TrainingSettings,
)

RESULT = "result.json"
_DONE = "done"
SCHEMA = 1
WARMUP_SHARE = 0.05
"""Share of the steps in which the learning rate rises."""
SPIKE_PLACE = 0.6
"""Where in a training the planted spike is."""
CALIBRATION_ROWS = 32
_MEASUREMENTS = 20
"""Of the held-out loss during a training."""
_AVERAGES = 30
"""An average is of parameters that are such a part of the steps apart."""
_NEAR, _FEWEST, _HIGH = 50, 10, 3.0


class Trials:
    """The trainings of the experiment ``experiment`` in the stage ``stage``."""

    def __init__(self, stage: Stage, experiment: Experiment) -> None:
        self._stage = stage
        self._experiment = experiment
        self.settings = stage.section("experiments.runs", ExperimentRunsSettings)
        self._mixture = stage.inputs["mixture"]
        self.shares = {domain.name: domain.weight for domain in read_mixture(self._mixture).domains}
        self._held_out = HeldOutData(self._mixture)
        require_documents(self._held_out, self.settings.measure)
        self._base = cache(self._train_base)

    def run(self, name: str, seed: int) -> dict[str, Any]:
        """Train variant ``name``, and leave ``result.json`` and ``history.jsonl`` in its folder.

        One that finished before the stage was killed is not trained again, and one that had begun
        goes on from its checkpoint. A training that its checks stop has no loss, and says why.
        """
        if self._experiment.start == "ternary":
            self._base(seed)  # also where it is not needed any more: its folder is
        part = part_of(self._stage, folder_of(name, seed), f"{name}, seed {seed}")
        done = part.work / _DONE
        if not done.is_dir():
            self._train(part, self._experiment.variants[name], seed)
            unfinished = part.work / f"{_DONE}.partial"
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(part.folder, unfinished)
            unfinished.rename(done)
            for _, checkpoint in checkpoints_in(part.work):
                shutil.rmtree(checkpoint)
        shutil.copytree(done, part.folder, dirs_exist_ok=True)
        return read_result(self._stage.folder, name, seed)

    def _train(self, part: Stage, variant: Variant, seed: int) -> None:
        training = training_settings(self._experiment, variant, self.settings)
        data = open_data(
            part,
            training,
            seed=self._seed("order", seed),
            weights=shifted_weights(self.shares, dict(variant.shares)),
            shuffle_buffer_size=variant.shuffle_buffer_size,
        )
        model = self._model(variant, seed, data)
        start = self._measure(model)
        ordered, _ = arrange(part, training, data, None)
        operations = StepOperations()
        hooks = [operations, *_hooks(variant, training.steps)]
        objective = self._objective(variant, seed)
        trainer = stage_trainer(part, model, ordered, training, objective, hooks=hooks)
        if variant.bfloat16_parameters:  # which that check refuses
            trainer.hooks = [hook for hook in trainer.hooks if not isinstance(hook, Movement)]
        scores: dict[str, HeldOutScores] = {}
        measures = {"start_loss": self._loss(start)}
        stopped = None
        try:
            trainer.run()
            found = self._measure(model)
            measures["loss"] = self._loss(found)
            scores = found
        except UserError as error:
            stopped = str(error)
            part.terminal.say(f"{part.terminal.label}: stopped: {stopped}")
            write_history(part.folder, trainer.state.history)
        finally:
            operations.close()
        measures |= measures_of(read_history(part.folder))
        content = {
            "schema": SCHEMA,
            "stopped": stopped,
            "tokens": int(trainer.state.history[-1]["tokens"]) if trainer.state.history else 0,
            "measures": measures,
            "domains": {name: domain.documents.as_json() for name, domain in scores.items()},
        }
        write_json(part.folder / RESULT, content)

    def _train_base(self, seed: int) -> PreTrainedModel:
        """The dense model that ternary ones of this seed are made of; its checkpoints stay."""
        part = part_of(self._stage, folder_of("base", seed), f"the dense model of seed {seed}")
        dense = Experiment("", "dense", "base", {"base": Variant()})
        steps = self.settings.base_steps or self.settings.steps
        runs = self.settings.model_copy(update={"steps": steps})
        training = training_settings(dense, Variant(), runs)
        data = open_data(part, training, seed=self._seed("base order", seed))
        model = self._untrained(seed, data)
        stage_trainer(part, model, data, training).run()
        return model

    def _model(self, variant: Variant, seed: int, data: TrainingData) -> PreTrainedModel:
        if self._experiment.start == "dense":
            model = self._untrained(seed, data)
        else:
            model = copy.deepcopy(self._base(seed))
            insert_bitlinear(model, QuantizerSettings(**variant.quantizer))
            if variant.subln != "none":
                insert_subln(model)
                rows = first_training_rows(data, CALIBRATION_ROWS)
                calibrate_subln(model, list(rows), variant.subln)
            if variant.reconstruct:
                precision = {"precision": self.settings.precision}
                chosen = ReconstructSettings.model_validate(precision | dict(variant.reconstruct))
                batches = first_training_rows(data, chosen.rows, chosen.batch_size)
                with tempfile.TemporaryDirectory() as kept:
                    reconstruct_layers(model, batches, chosen, Path(kept))
        if variant.bfloat16_parameters:
            round_to_bfloat16(model)
        return model

    def _objective(self, variant: Variant, seed: int) -> Objective | None:
        """With the dense model as teacher, where the variant has one."""
        if variant.distillation is None:
            return None
        settings = DistillationSettings.model_validate(dict(variant.distillation))
        return distillation(NextToken(), settings, copy.deepcopy(self._base(seed)))

    def _untrained(self, seed: int, data: TrainingData) -> PreTrainedModel:
        return build_scratch(
            self.settings.model,
            vocabulary_size=data.vocabulary_size,
            sequence_length=data.sequence_length,
            end_of_text_id=data.end_of_text_id,
            seed=self._seed("model", seed),
        )

    def _seed(self, what: str, seed: int) -> int:
        return shared_seed(self._stage.settings["seed"], "experiments", what, seed)

    def _measure(self, model: PreTrainedModel) -> dict[str, HeldOutScores]:
        return measure_held_out(model, self._held_out, self.settings.measure)

    def _loss(self, scores: dict[str, HeldOutScores]) -> float:
        """Nats per token over text composed like the mixture; UserError if it is not finite."""
        domains = {name: domain_score(found, f"domain {name}") for name, found in scores.items()}
        return overall_score(domains, self.shares).loss


def folder_of(variant: str, seed: int) -> str:
    """The folder of a training within its experiment's."""
    return f"{variant}-seed-{seed}"


def read_result(folder: Path, variant: str, seed: int) -> dict[str, Any]:
    """``result.json`` of a training in the folder of an experiment."""
    path = folder / folder_of(variant, seed) / RESULT
    return json.loads(path.read_text(encoding="utf-8"))


def training_settings(
    experiment: Experiment, variant: Variant, runs: ExperimentRunsSettings
) -> TrainingSettings:
    """How a variant is trained: as many tokens as every other one."""
    given: dict[str, Any] = {
        "batch_size": runs.batch_size,
        "gradient_accumulation_steps": 1,
        "precision": runs.precision,
    }
    for layer in (SHARED_TRAINING, experiment.training, variant.training):
        given = overlay(given, dict(layer))
    rows = given["batch_size"] * given["gradient_accumulation_steps"]
    steps = max(runs.steps * runs.batch_size // rows, 2)
    given = overlay(
        given,
        {
            "steps": steps,
            "schedule": {"warmup_steps": max(1, int(steps * WARMUP_SHARE))},
            "checkpoint_interval": max(1, steps // 4),
            "log_interval": steps,
            "averaging": {"last": {"interval": max(1, steps // _AVERAGES)}},
            "evaluate_interval": max(1, steps // _MEASUREMENTS),
            "evaluate_rows_per_domain": min(4, runs.measure.rows_per_domain),
        },
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CurriculumDecayWarning)  # an experiment is about it
        if experiment.start == "dense":
            return TrainingSettings(**given)
        warmup = {
            "warmup_steps": min(int(steps * variant.lambda_share), steps - 1),
            "schedule": variant.lambda_schedule,
        }
        return QuantizedTrainingSettings(**given, lambda_warmup=warmup)  # pyright: ignore


def shifted_weights(present: dict[str, float], shares: dict[str, float]) -> dict[str, float]:
    """``present`` with the ``shares`` of some domains; the others keep their proportions.

    Raises
    ------
    UserError : the mixture has no such domain.
    """
    if unknown := sorted(set(shares) - set(present)):
        raise UserError(
            f"a variant changes the weight of domain {unknown[0]}, which the mixture does not have;"
            " leave its experiment out of experiments.names"
        )
    others = sum(weight for name, weight in present.items() if name not in shares)
    left = 1.0 - sum(shares.values())
    scale = left / others if shares else 1.0
    return {name: shares.get(name, weight * scale) for name, weight in present.items()}


def measures_of(history: History) -> dict[str, float]:
    """Measures that follow from the history; variances of the loss are of its second half."""
    if not history.steps:
        return {}
    half = len(history.steps) // 2
    metrics = {name: values[half:] for name, values in history.metrics.items()}
    found = loss_noise(History(history.steps[half:], history.tokens[half:], metrics))
    counts = {
        "spikes": float(gradient_spikes(history.series("train/grad_norm_raw"))),
        "unmoved": mean(history.series(UNMOVED)),
        "operations": history.series(OPERATIONS)[0] / history.tokens[0] / 1e6,
    }
    if found is None:
        return counts
    return counts | {
        "step_variance": found.steps_of_stage,
        "within": found.rows_of_stage.within,
        "between": found.rows_of_stage.between,
    }


def gradient_spikes(norms: list[float]) -> int:
    """Steps whose gradient norm is above 3 times the median of the 50 before."""
    count = 0
    for step, norm in enumerate(norms):
        near = norms[max(step - _NEAR, 0) : step]
        count += len(near) >= _FEWEST and norm > _HIGH * median(near)
    return count


def _hooks(variant: Variant, steps: int) -> list[Hook]:
    hooks: list[Hook] = [UnmovedWeights()]
    if variant.spike:
        hooks.append(GradientSpike(int(steps * SPIKE_PLACE)))
    if variant.bfloat16_parameters:
        hooks.append(Bfloat16Parameters())
    return hooks
