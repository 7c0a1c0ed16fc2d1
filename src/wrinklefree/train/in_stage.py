"""A training as part of a stage: its checkpoints, its tracking, and what it was told to go on from.

Everything else about trainings knows nothing of stages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.mixture.batch import BatchSource
from wrinklefree.mixture.loader import HeldOutData
from wrinklefree.tracking.stage import Stage
from wrinklefree.tracking.trainings import continued_from
from wrinklefree.train.history import write_history
from wrinklefree.train.hooks import FirstLossCheck, Hook, Training
from wrinklefree.train.loop import Trainer
from wrinklefree.train.objectives.objective import Objective
from wrinklefree.train.settings import TrainingSettings


def stage_trainer(
    stage: Stage,
    model: PreTrainedModel,
    data: BatchSource,
    settings: TrainingSettings,
    objective: Objective | None = None,
    *,
    check_first_loss: Callable[[float], None] | None = None,
    hooks: Sequence[Hook] = (),
) -> Trainer:
    """A trainer that works in the folders of ``stage`` and leaves ``history.jsonl`` there.

    Parameters
    ----------
    check_first_loss : called with the loss of the first step (nats per token); raises UserError
        when training should not go on from there.
    hooks : join those of the stage.
    """
    own: list[Hook] = [_Continuation(stage), _History(stage)]
    if check_first_loss:
        own.append(FirstLossCheck(check_first_loss))
    measures = (
        settings.evaluate_interval
        or settings.data.influence.enabled
        or settings.averaging.name != "none"
    )
    held_out = HeldOutData(stage.inputs["mixture"]) if measures else None
    return Trainer(
        model,
        data,
        settings,
        objective,
        held_out=held_out,
        folder=stage.work,
        journal=_StageJournal(stage),
        hooks=[*own, *hooks],
    )


class _StageJournal:
    """The stage's terminal, log file and MLflow run."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.label = stage.terminal.label

    def say(self, text: str) -> None:
        """A line on the terminal and in the log."""
        self._stage.terminal.say(text)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics of the run."""
        self._stage.run.log_metrics(step, metrics)


class _Continuation(Hook):
    """Takes over the training that ``wrinklefree continue`` named."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def on_start(self, training: Training) -> None:
        """Adopt its state, record the event, and save: the wish is fulfilled."""
        stage, state, work = self._stage, training.state, self._stage.work
        if (source := stage.continuation) is None:
            if not state.step and continued_from(work):
                raise UserError(
                    f"{work}: no checkpoint can be read of this training, which had gone on from"
                    " another one; delete the folder to start from the beginning"
                )
            return
        if training.settings.steps <= source.training.step:
            raise UserError(
                f"steps is {training.settings.steps}, and the training to go on from has taken"
                f" {source.training.step}: raise steps. {source.advice}"
            )
        try:
            state.adopt(source.training.checkpoint, source.training.step)
        except UserError as error:
            raise UserError(f"it can't be gone on from: {error}. {source.advice}") from error
        state.save(work)
        source.taken_up(work)
        stage.run.log_tags({"wrinklefree.continued_from": json.dumps(source.event)})
        training.journal.say(f"{training.journal.label}: continues {source.training.folder}")


class _History(Hook):
    """Leaves the metrics of all steps as a file of the artifact."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def on_stop(self, training: Training) -> None:
        """Write them."""
        write_history(self._stage.folder, training.state.history)
