"""What happens around the steps of a training, beside the steps themselves.

A hook that keeps a state is a ``StatefulHook``: checkpoints hold the state under its name.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.mixture.batch import Batch, BatchSource
from wrinklefree.mixture.loader import HeldOutData
from wrinklefree.optim.combined import CombinedOptimizer
from wrinklefree.quant.bitlinear import set_quantization_lambda
from wrinklefree.quant.settings import LambdaWarmupSettings
from wrinklefree.quant.warmup import quantization_lambda
from wrinklefree.stability.activations import ActivationTelemetry
from wrinklefree.stability.codes import CodeTelemetry, codes_of
from wrinklefree.stability.gradients import HEALTHY_NORMS, healthy_share
from wrinklefree.stability.movement import FrozenParameterError, MovementCheck
from wrinklefree.train.journal import Journal
from wrinklefree.train.objectives.objective import CROSS_ENTROPY, TrainStep
from wrinklefree.train.runtime import Runtime
from wrinklefree.train.settings import TrainingSettings
from wrinklefree.train.state import TrainingState

HELD_OUT = "held_out/loss"
FIRST_STEPS = 100
"""Within which a training that goes wrong is to be noticed."""


def is_due(step: int, interval: int, settings: TrainingSettings) -> bool:
    """Whether what comes every ``interval`` steps, and at the end, comes after step ``step``."""
    return step % interval == 0 or step == settings.steps


class Training(Protocol):
    """What a hook sees of the training."""

    model: PreTrainedModel
    train_step: TrainStep
    optimizer: CombinedOptimizer
    data: BatchSource
    settings: TrainingSettings
    runtime: Runtime
    state: TrainingState
    journal: Journal

    def batch(self, step: int, micro_batch: int) -> Batch:
        """This process's rows of a micro-batch, on its device."""
        ...

    def go_back(self, step: int) -> int | None:
        """Go back to the newest checkpoint of at most ``step`` steps, or else to the oldest.

        Returns
        -------
        The step that it is of; None where there is none, and nothing was done.
        """
        ...


class Hook:
    """Does nothing at any of the moments; a hook overrides those that it is for."""

    def on_start(self, training: Training) -> None:
        """A checkpoint was loaded, or none was there; the first step of this process comes."""

    def on_restored(self, training: Training) -> None:
        """The state is that of a checkpoint, or of the beginning: after ``on_start``, and when
        training has gone back."""

    def leaves_out(self, step: int) -> bool:
        """Whether a step is to be left out."""
        return False

    def before_step(self, training: Training, step: int) -> dict[str, float]:
        """A step comes; returns metrics of it."""
        return {}

    def after_update(self, training: Training) -> None:
        """The optimizer has changed the parameters, and gradients are still there."""

    def after_step(self, training: Training, entry: dict[str, float]) -> None:
        """A step was taken, of which ``entry`` has the metrics; more may be added."""

    def on_stop(self, training: Training) -> None:
        """All steps are taken."""

    def facts(self) -> dict[str, Any]:
        """What the artifact's manifest shall say."""
        return {}


@runtime_checkable
class StatefulHook(Protocol):
    """A hook with something that a resumed run must have back."""

    name: str

    def state_dict(self) -> dict[str, Any]:
        """Finite numbers, and lists and mappings by name of such."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what ``state_dict`` gave."""
        ...


class QuantizationWarmup(Hook):
    """Quantization strength over steps; ``train/lambda``."""

    def __init__(self, settings: LambdaWarmupSettings) -> None:
        self._settings = settings

    def before_step(self, training: Training, step: int) -> dict[str, float]:
        """Give the model the strength of this step."""
        strength = quantization_lambda(step, self._settings)
        set_quantization_lambda(training.model, strength)
        return {"train/lambda": strength}

    def on_stop(self, training: Training) -> None:
        """The finished model is fully quantized."""
        self.before_step(training, training.settings.steps)


class HealthyNorms(Hook):
    """How many gradient norms are healthy; says once if most of the first 100 steps' are not."""

    def after_step(self, training: Training, entry: dict[str, float]) -> None:
        """Judge the first 100 steps."""
        if training.state.step != FIRST_STEPS or not (norms := _raw_norms(training)):
            return
        if (share := healthy_share(norms)) < 0.5:
            low, high = HEALTHY_NORMS
            middle = statistics.median(norms)
            advice = (
                "the rate may be too high, or the data or the initialisation out of scale"
                if middle > high
                else "little may be left of gradients, or the loss may hardly depend on the weights"
            )
            training.journal.say(
                f"warning: {1 - share:.0%} of the first {FIRST_STEPS} steps had a gradient norm"
                f" outside {low:g} to {high:g} (median {middle:.3g}): {advice}; look at"
                " train/grad_norm_raw"
            )

    def on_stop(self, training: Training) -> None:
        """Judge all steps."""
        norms = _raw_norms(training)
        self._share = healthy_share(norms) if norms else 0.0

    def facts(self) -> dict[str, Any]:
        """The share of steps."""
        return {"gradient_health": {"healthy_share": self._share}}


def _raw_norms(training: Training) -> list[float]:
    """Norms before clipping of the steps that were taken."""
    key = "train/grad_norm_raw"
    return [entry[key] for entry in training.state.history if key in entry]


class FirstLossCheck(Hook):
    """Looks at the loss of the first step (nats per token), if there is one.

    ``check`` raises UserError when training should not go on from there.
    """

    def __init__(self, check: Callable[[float], None]) -> None:
        self._check = check

    def after_step(self, training: Training, entry: dict[str, float]) -> None:
        """Check it."""
        if training.state.step == 1 and "train/loss" in entry:
            self._check(entry["train/loss"])


class HeldOutLoss(Hook):
    """Cross-entropy on the same few held-out rows of each domain, every so many steps.

    Processes that train together read a part of them each.

    It is what ``train/loss`` is of training rows: the objective's own, at the present strength of
    quantization. Of a block-diffusion model that is the loss of masked tokens, under masks that are
    a function of the row alone; the stage ``evaluate`` has the likelihood, at many times the cost.
    """

    def __init__(self, data: HeldOutData) -> None:
        self._data = data

    def after_step(self, training: Training, entry: dict[str, float]) -> None:
        """Measure where it is due, and at the end."""
        settings = training.settings
        if is_due(training.state.step, settings.evaluate_interval, settings):
            entry |= self.measure(training.train_step, training.runtime, settings)

    @torch.no_grad()
    def measure(
        self, train_step: TrainStep, runtime: Runtime, settings: TrainingSettings
    ) -> dict[str, float]:
        """Nats per token, as ``held_out/loss/<domain>`` and of all rows ``held_out/loss``.

        The model, and all that later steps depend on, is left as it was. A domain without held-out
        rows, or none whose tokens are asked for, has no metric.
        """
        was_training = train_step.training
        train_step.eval()
        try:
            sums = {
                name: self._sums(name, train_step, runtime, settings) for name in self._data.domains
            }
        finally:
            train_step.train(was_training)
        sums[""] = tuple(map(sum, zip(*sums.values(), strict=True)))
        return {
            f"{HELD_OUT}/{name}".removesuffix("/"): loss / tokens
            for name, (loss, tokens) in sums.items()
            if tokens
        }

    def _sums(
        self, domain: str, train_step: TrainStep, runtime: Runtime, settings: TrainingSettings
    ) -> tuple[float, ...]:
        """Nats and asked tokens of a domain's rows."""
        loss = tokens = 0.0
        objective = train_step.objective.alone(CROSS_ENTROPY)  # which no teacher is asked for
        rows = settings.evaluate_rows_per_domain
        at_once = runtime.rows_of(settings.batch_size)
        batches = self._data.batches(domain, rows=rows, batch_size=at_once)
        for batch in itertools.islice(batches, runtime.rank, None, runtime.ranks):
            prepared = objective.corruption.prepare(batch.to(runtime.device), step=0)
            if not (denominator := objective.corruption.denominator(prepared)):
                continue
            with runtime.computing():
                output = objective.loss(train_step(prepared), prepared, denominator)
            loss += output.row_loss_B.double().sum().item()
            tokens += output.row_tokens_B.sum().item()
        return tuple(runtime.sum(loss, tokens))


class Telemetry(Hook):
    """Activations and codes, every ``telemetry_interval`` steps: what int8 loses of the step's
    rows, and what its update does to the codes.

    Where processes train together, of the rows that the first one reads. The codes that ``model``
    begins with are kept, a byte each: a resumed training is made of the same model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._open: ActivationTelemetry | None = None
        self._start = codes_of(model)

    def before_step(self, training: Training, step: int) -> dict[str, float]:
        """Begin to measure, where it is time."""
        if (step + 1) % training.settings.telemetry_interval == 0:
            self._open = ActivationTelemetry(training.model).__enter__()
            self._codes = CodeTelemetry(training.model, self._start)
        return {}

    def after_step(self, training: Training, entry: dict[str, float]) -> None:
        """Report what was measured."""
        if self._open:
            self._open.__exit__(None, None, None)
            entry |= self._open.metrics() | self._codes.metrics()
            self._open = None


class Movement(Hook):
    """After 100 steps, or at the end of a shorter run: did every parameter move?

    The last steps of a resumed run are not enough to tell: their rates may be near zero.
    """

    def on_restored(self, training: Training) -> None:
        """Remember the parameters, as the checkpoint left them."""
        self._resumed = bool(training.state.step)
        self._check = MovementCheck(training.model, training.optimizer, steps=FIRST_STEPS)

    def after_update(self, training: Training) -> None:
        """Take note of the step."""
        self._check.observe()

    def after_step(self, training: Training, entry: dict[str, float]) -> None:
        """Compare, where it is time; raises UserError for a parameter that is frozen."""
        step, steps = training.state.step, training.settings.steps
        short = step == steps < FIRST_STEPS and not self._resumed
        if not (self._check.due or short):
            return
        try:
            report = self._check.check()
        except FrozenParameterError as error:
            raise UserError(str(error)) from error
        training.journal.log(step, report.metrics())
