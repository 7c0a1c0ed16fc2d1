"""The trials of a search: their values, when one is stopped, and how a killed one goes on.

The study is an SQLite file in the stage's work folder, from which several processes take trials.
The values of a trial follow from its number and from the trials that ended before it began.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from wrinklefree.errors import UserError
from wrinklefree.mixture.loader import HeldOutData
from wrinklefree.research.hyperparameter_settings import (
    SECTION,
    RangeSettings,
    SearchSettings,
    counting,
    is_whole,
    laid,
)
from wrinklefree.research.measure import shared_seed
from wrinklefree.tracking.locks import exclusive_lock
from wrinklefree.tracking.runs import Outcome, StageRun
from wrinklefree.tracking.stage import Stage, setting
from wrinklefree.train.hooks import HELD_OUT, HeldOutLoss, Hook, Training
from wrinklefree.train.stage2 import stage2_trainer
from wrinklefree.train.stage2_settings import Stage2Settings

WHY = "why"
"""Attribute of a trial that a check ended."""
_LEFT = "left"
"""Attribute of a trial that an earlier process began and did not end."""
_LOCK_SECONDS = 60.0
_SEEDS = 2**32


@contextmanager
def open_study(work: Path) -> Iterator[optuna.Study]:
    """The study in the folder ``work``, made where there is none."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    work.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{work}/study.db", engine_kwargs={"connect_args": {"timeout": _LOCK_SECONDS}}
    )
    try:
        yield optuna.create_study(
            storage=storage,
            study_name="search",
            pruner=optuna.pruners.MedianPruner(),
            load_if_exists=True,
        )
    finally:
        storage.remove_session()
        storage.engine.dispose()


def prepare(study: optuna.Study, ranges: Mapping[str, RangeSettings], own: Stage2Settings) -> bool:
    """Put back what killed processes left; the first trial has the settings of stage 2.

    Returns
    -------
    Whether there is such a trial: its values must be within the ranges.

    Raises
    ------
    UserError : an end of a range does not go together with the other settings of stage 2.
    """
    for path, values in ranges.items():
        for end in values.ends:
            laid(own, {path: int(end) if is_whole(path) else end})
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        Trial(study, trial._trial_id).set_user_attr(_LEFT, True)
    present = {path: setting(own.model_dump(), path) for path in ranges}
    within = all(values.contains(present[path]) for path, values in ranges.items())
    if within and not study.get_trials(deepcopy=False):
        study.enqueue_trial(present)
    return within


class Trials:
    """Takes trials from ``study`` until there are enough, and trains each.

    Parameters
    ----------
    parent : id of the stage's run in MLflow.
    """

    def __init__(self, stage: Stage, study: optuna.Study, parent: str) -> None:
        self._stage, self._study, self._parent = stage, study, parent
        self._search: SearchSettings = stage.section("search", SearchSettings)
        own: Stage2Settings = stage.section(SECTION, Stage2Settings)
        self._ranges = counting(self._search.ranges, own)
        self._own = own.model_copy(
            update={
                "evaluate_interval": -(-own.steps // self._search.evaluations),
                "evaluate_rows_per_domain": self._search.rows_per_domain,
                "log_interval": own.steps,
            }
        )

    def run(self) -> None:
        """Go on with the trials that were left, then begin new ones."""
        while trial := self._taken():
            self._tracked(trial)

    def _taken(self) -> Trial | None:
        with exclusive_lock(self._stage.work / "study.lock"):
            trials = self._study.get_trials(deepcopy=False)
            left = [trial for trial in trials if trial.user_attrs.get(_LEFT)]
            begun = sum(trial.state != TrialState.WAITING for trial in trials)
            if left:
                trial = Trial(self._study, left[0]._trial_id)
            elif begun < self._search.trials:
                trial = self._study.ask()
            else:
                return None
            trial.set_user_attr(_LEFT, False)
            seed = shared_seed(self._stage.seed, trial.number) % _SEEDS
            self._study.sampler = optuna.samplers.TPESampler(seed=seed)
            for path, values in self._ranges.items():
                _suggest(trial, path, values)
            return trial

    def _tracked(self, trial: Trial) -> None:
        """Train, as a run of MLflow of its own; its checkpoints go when it has ended."""
        name = f"trial_{trial.number:04}"
        work = self._stage.work / name
        work.mkdir(exist_ok=True)
        run = StageRun(f"{self._stage.name}.{name}", work, self._parent)
        outcome: Outcome = "FAILED"
        try:
            run.log_parameters(trial.params)
            self._say(trial, ", ".join(f"{path} {shown(v)}" for path, v in trial.params.items()))
            loss = self._trained(trial, replace(self._stage, folder=work, work=work, run=run))
            state = TrialState.PRUNED if loss is None else TrialState.COMPLETE
            self._study.tell(trial, loss, state)
            self._say(trial, "stopped early" if loss is None else f"{loss:.4f}")
            run.log_tags({"wrinklefree.trial": state.name.lower()})
            outcome = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            outcome = "KILLED"
            raise
        finally:
            run.finish(outcome)
        shutil.rmtree(work)

    def _trained(self, trial: Trial, part: Stage) -> float | None:
        """Held-out loss of the finished model, nats per token; None where it was stopped.

        A training that a check ends is a result: nothing is to be expected of such values.
        """
        try:
            settings = laid(self._own, trial.params)
            trainer, _, _ = stage2_trainer(part, settings)
            trainer.hooks.append(_Reports(trial))  # behind the one that measures
            trainer.run()
        except optuna.TrialPruned:
            return None
        except UserError as error:
            trial.set_user_attr(WHY, str(error).splitlines()[0])
            self._say(trial, str(error))
            return None
        held_out = HeldOutLoss(HeldOutData(part.inputs["mixture"]))
        return held_out.measure(trainer.train_step, trainer.runtime, settings)[HELD_OUT]

    def _say(self, trial: Trial, line: str) -> None:
        self._stage.terminal.say(f"{self._stage.terminal.label}: trial {trial.number}: {line}")


class _Reports(Hook):
    """Tells the study what was measured, and stops a hopeless trial.

    Only of fully quantized models: while quantization sets in, a slower warmup looks better.
    """

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        frozen = trial.study.get_trials(deepcopy=False)[trial.number]
        self._known = set(frozen.intermediate_values)  # by a process that was killed

    def after_step(self, training: Training, entry: dict[str, float]) -> None:
        """Report; raises TrialPruned above the median."""
        step = int(entry["step"])
        if HELD_OUT not in entry or entry.get("train/lambda", 1.0) < 1.0:
            return
        if step not in self._known:
            self._trial.report(entry[HELD_OUT], step)
            self._known.add(step)
        if step < training.settings.steps and self._trial.should_prune():
            raise optuna.TrialPruned


def _suggest(trial: Trial, path: str, values: RangeSettings) -> None:
    if values.choices is not None:
        trial.suggest_categorical(path, values.choices)
        return
    low, high = values.ends
    if is_whole(path):
        trial.suggest_int(path, int(low), int(high), log=values.log)
    else:
        trial.suggest_float(path, float(low), float(high), log=values.log)


def shown(value: Any) -> str:
    """A value of a setting, for a line or a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
