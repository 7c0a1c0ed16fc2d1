"""The one training loop.

A step is a function of (settings, data, step): learning rate, quantization strength, rows and noise
all follow from the step's number, so a run that was killed and resumed takes the same steps.

Parameters and optimizer state are fp32 (a model cast to bf16 loses most updates of a normal size);
bfloat16 is used inside autocast only.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.mixture.batch import Batch, BatchSource
from wrinklefree.mixture.loader import HeldOutData, TrainingData
from wrinklefree.models.finite import first_not_finite
from wrinklefree.models.forward import require_embeddings, require_float32, require_positions
from wrinklefree.optim.build import build_optimizer
from wrinklefree.optim.schedule import learning_rate_fraction
from wrinklefree.stability.clippers import build_clipper
from wrinklefree.stability.gradients import GradientWarning, gradient_health
from wrinklefree.tracking.progress import Progress
from wrinklefree.tracking.signals import HeldSignals, held_signals
from wrinklefree.train.averaging import Averaging
from wrinklefree.train.data import samples_per_step
from wrinklefree.train.divergence import culprit, divergence
from wrinklefree.train.gradient_ratios import GradientRatios
from wrinklefree.train.hooks import (
    HELD_OUT,
    HealthyNorms,
    HeldOutLoss,
    Hook,
    Movement,
    QuantizationWarmup,
    StatefulHook,
    Telemetry,
    is_due,
)
from wrinklefree.train.influence import InfluenceMixture
from wrinklefree.train.journal import Journal, Printed, Silent
from wrinklefree.train.objectives.objective import Objective, TrainStep
from wrinklefree.train.runtime import Runtime
from wrinklefree.train.settings import QuantizedTrainingSettings, TrainingSettings
from wrinklefree.train.spikes import Spikes
from wrinklefree.train.state import TrainingState
from wrinklefree.train.totals import StepTotals, step_totals
from wrinklefree.train.wrapping import make_train_step, wrap_for_training


class _StepAbandonedError(Exception):
    """A step that a signal cut off before anything was changed by it."""


class Trainer:
    """Takes a model through the steps of one training.

    Parameters
    ----------
    objective : the next token, where none is given.
    held_out : rows for the held-out loss of every ``evaluate_interval`` steps.
    folder : keeps checkpoints, from which a run that was killed goes on; without it there are none.
    journal : is told what happens.
    hooks : join those that the settings ask for.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        data: BatchSource,
        settings: TrainingSettings,
        objective: Objective | None = None,
        *,
        held_out: HeldOutData | None = None,
        folder: Path | None = None,
        journal: Journal | None = None,
        hooks: Sequence[Hook] = (),
    ) -> None:
        require_float32(model)
        require_embeddings(model, data.vocabulary_size)
        require_positions(model, data.sequence_length)
        self.data = data
        self.settings = settings
        self.folder = folder
        self.runtime = Runtime.here(settings.precision)
        self.runtime.rows_of(settings.batch_size)
        self.journal = journal or Printed()
        if not self.runtime.leads:
            self.journal = Silent(self.journal.label)
        self.model = model.train()
        self.runtime.place(self.model)
        self.train_step = make_train_step(self.model, objective, settings, self.runtime)
        self.optimizer = build_optimizer(self.model, settings.optimizer)
        wrap_for_training(self.train_step, settings)
        self.clipper = build_clipper(settings.clipping)
        self.warnings: Counter[GradientWarning] = Counter()
        self.hooks = [*hooks, *_hooks_of(settings, self.train_step, data, held_out)]
        stateful = {hook.name: hook for hook in self.hooks if isinstance(hook, StatefulHook)}
        self.state = TrainingState(
            self.model,
            {"optimizer": self.optimizer, "clipper": self.clipper, **stateful},
            self.runtime,
            reach=settings.spikes.reach,
        )
        self.signals = HeldSignals()

    def run(self) -> dict[str, Any]:
        """Train to the last step; the metrics of every step are in ``state.history``.

        Returns
        -------
        Facts: steps, tokens, first and last loss (nats per token).
        """
        self._restore()
        for entry in self.state.history:  # of which a killed process may not have sent the last
            self.journal.log(int(entry["step"]), _tracked(entry))
        label, steps = self.journal.label, self.settings.steps
        progress = Progress(label, "steps", steps, self.state.step, shown=self.runtime.leads)
        with contextlib.closing(progress), held_signals() as self.signals:
            with contextlib.suppress(_StepAbandonedError):
                while self.state.step < self.settings.steps:
                    self._advance(progress)
            if self.signals.received:
                self._save_before_leaving(self.signals.received.name)
        facts = self._facts()
        for hook in self.hooks:
            hook.on_stop(self)
            facts |= hook.facts()
        return facts

    def _restore(self) -> None:
        """Go on from where a killed process was."""
        say, label = self.journal.say, self.journal.label
        say(f"{label}: {self.runtime.describe()}")
        passed_over = self.state.restore(self.folder) if self.folder else []
        for complaint in passed_over:
            say(f"warning: a checkpoint was passed over: {complaint}")
        for hook in self.hooks:
            hook.on_start(self)
        for hook in self.hooks:
            hook.on_restored(self)
        if self.state.step or passed_over:
            say(f"{label}: going on from step {self.state.step}")
        else:
            for line in self.optimizer.table():
                say(f"{label}: {line}")

    def go_back(self, step: int) -> int | None:
        """See :class:`~wrinklefree.train.hooks.Training`."""
        if self.folder is None or not self.state.go_back(self.folder, step):
            return None
        for hook in self.hooks:
            hook.on_restored(self)
        return self.state.step

    def _advance(self, progress: Progress) -> None:
        """Take a step, and all that follows from it."""
        started, step, tokens = time.monotonic(), self.state.step, self._tokens_so_far()
        entry = self._step(step)
        speed = (entry["tokens"] - tokens) / (time.monotonic() - started)
        self.state.history.append(entry)
        self.state.step += 1
        for hook in self.hooks:
            hook.after_step(self, entry)
        self._report(entry, speed, progress, self.state.step - step)
        due = is_due(self.state.step, self.settings.checkpoint_interval, self.settings)
        if self.folder and (due or self.state.step == self.settings.spikes.first_back):
            self.state.save(self.folder)

    def _save_before_leaving(self, signal: str) -> None:
        if self.folder and self.state.saved != self.state.step:
            label, step = self.journal.label, self.state.step
            self.journal.say(f"{label}: {signal} came; step {step} is saved before leaving")
            self.state.save(self.folder)

    def _step(self, step: int) -> dict[str, float]:
        if any(hook.leaves_out(step) for hook in self.hooks):
            return self._not_taken(step) | {"train/left_out": 1.0}
        rate = self._set_learning_rate(step)
        measured: dict[str, float] = {}
        for hook in self.hooks:
            measured |= hook.before_step(self, step)
        self.optimizer.zero_grad(set_to_none=True)
        totals = self._backward(step)
        finite = math.isfinite(totals.objective)
        clip = self.clipper.clip(list(self.model.parameters())) if finite else None
        if clip is None or not clip.finite:
            return self._skip(step, totals)
        health = gradient_health(self.model.parameters(), clip)
        if health.warning:
            self._warn(step, health.warning)
        self.optimizer.step()
        for hook in self.hooks:
            hook.after_update(self)
        entry: dict[str, float] = {
            "step": step + 1,
            "tokens": self._tokens_so_far() + totals.tokens,
            "train/loss": totals.row_loss / totals.row_tokens,
            "train/objective": totals.objective,
            "train/learning_rate": rate,
            "train/grad_norm_raw": clip.raw_norm,
            "train/grad_norm_clipped": clip.clipped_norm,
            "train/grad_norm": clip.clipped_norm,
            "train/grad_clipped": float(clip.was_clipped),
            "train/grad_largest": health.largest,
            "train/grad_smallest": health.smallest,
            **clip.metrics,
        }
        entry |= measured
        entry |= self.optimizer.metrics()
        return entry | self._weights(step) | totals.domains | totals.terms

    def _skip(self, step: int, totals: StepTotals) -> dict[str, float]:
        """The entry of a step that is not applied, or the error where it is one too many."""
        history, most = self.state.history, self.settings.max_skipped_steps
        # Steps that were not finite.
        taken = sum("train/skipped" in e and "train/left_out" not in e for e in history)
        if taken >= most or first_not_finite(self.model):
            raise UserError(divergence(self.model, step, totals.objective, skipped=taken))
        self.journal.say(
            f"warning: step {step + 1} is skipped: {culprit(self.model)} is not finite (loss"
            f" {totals.objective:g}); {taken + 1} of {most} steps that may be"
        )
        self.optimizer.forget()
        return self._not_taken(step)

    def _not_taken(self, step: int) -> dict[str, float]:
        entry = {"step": step + 1, "tokens": self._tokens_so_far(), "train/skipped": 1.0}
        return entry | self._weights(step)

    def _tokens_so_far(self) -> float:
        return self.state.history[-1]["tokens"] if self.state.history else 0

    def _backward(self, step: int) -> StepTotals:
        """Gradients of the whole step, micro-batch by micro-batch, under one denominator."""
        count = self.settings.gradient_accumulation_steps
        objective = self.train_step.objective
        corruption = objective.corruption
        prepared = [corruption.prepare(self.batch(step, index), step) for index in range(count)]
        denominator = self._begin_together(sum(map(corruption.denominator, prepared)))
        assert denominator > 0, "a step without a supervised token"
        outputs = []
        for micro in prepared:
            if self.signals.received and self.runtime.ranks == 1:
                raise _StepAbandonedError
            with self.runtime.computing():
                output = objective.loss(self.train_step(micro), micro, denominator)
            output.loss.backward()
            outputs.append(replace(output, loss=output.loss.detach()))
        self.runtime.sum_gradients(self.model.parameters())
        self.optimizer.combine(self.runtime.maximum)
        batches = [micro.batch for micro in prepared]
        return step_totals(batches, outputs, self.data.domains, self.runtime)

    def _begin_together(self, denominator: float) -> float:
        """The denominator of the step over all processes: all take it, or all abandon it.

        Once they have begun, one that left would let the others wait for its gradients.
        """
        mine = torch.tensor([denominator, self.signals.received or 0], dtype=torch.float64)
        denominators_R, signals_R = self.runtime.gather(mine).unbind(1)
        if number := int(signals_R.max()):
            self.signals.received = signal.Signals(number)
            raise _StepAbandonedError
        return denominators_R.sum().item()

    def _weights(self, step: int) -> dict[str, float]:
        """The shares of the domains that the step's rows were drawn for."""
        weights = self.data.weights_at(step * samples_per_step(self.settings))
        return {f"train/weight/{domain}": weight for domain, weight in weights.items()}

    def batch(self, step: int, micro_batch: int) -> Batch:
        """This process's rows, which are a micro-batch where a step has more and smaller ones."""
        ranks = self.runtime.ranks
        batch = self.data.batch(
            step,
            micro_batch * ranks + self.runtime.rank,
            batch_size=self.runtime.rows_of(self.settings.batch_size),
            micro_batches=self.settings.gradient_accumulation_steps * ranks,
        )
        return batch.to(self.runtime.device)

    def _set_learning_rate(self, step: int) -> float:
        fraction = learning_rate_fraction(step, self.settings.steps, self.settings.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * fraction
        return self.settings.optimizer.chosen.lr * fraction

    def _warn(self, step: int, warning: GradientWarning) -> None:
        """Say a warning when it first comes; after that it is counted only."""
        if not self.warnings[warning]:
            self.journal.say(f"warning: step {step + 1}: {warning}")
        self.warnings[warning] += 1

    def _report(
        self, entry: dict[str, float], speed: float, progress: Progress, advance: int
    ) -> None:
        """Tell a step; ``advance`` is 1, or below 0 where a hook has gone back after it."""
        step = int(entry["step"])
        self.journal.log(step, _tracked(entry) | {"train/tokens_per_second": speed})
        words = [f"loss {entry['train/loss']:.3f}" if "train/loss" in entry else "skipped"]
        if (held_out := entry.get(HELD_OUT)) is not None:
            words.append(f"held out {held_out:.3f}")
        line = is_due(step, self.settings.log_interval, self.settings) or held_out is not None
        progress.advance(advance, *words, f"{speed:,.0f} tokens/s", line=line)

    def _facts(self) -> dict[str, Any]:
        history = self.state.history
        taken = [entry for entry in history if "train/skipped" not in entry]
        return {
            "precision": self.runtime.precision,
            **self.optimizer.facts(),
            "steps": len(history),
            "steps_skipped": len(history) - len(taken),
            "tokens": int(history[-1]["tokens"]),
            "loss_first": taken[0]["train/loss"],
            "loss_last": taken[-1]["train/loss"],
            "steps_clipped": int(sum(entry["train/grad_clipped"] for entry in taken)),
        }


def _hooks_of(
    settings: TrainingSettings,
    train_step: TrainStep,
    data: BatchSource,
    held_out: HeldOutData | None,
) -> list[Hook]:
    """What the settings ask for."""
    hooks: list[Hook] = [HealthyNorms()]
    full_strength_from = 0
    if isinstance(settings, QuantizedTrainingSettings):
        hooks.append(QuantizationWarmup(settings.lambda_warmup))
        full_strength_from = settings.lambda_warmup.warmup_steps
    if ratios := train_step.objective.gradient_ratios:
        hooks.append(GradientRatios(ratios, full_strength_from))
    if settings.data.influence.enabled:
        if held_out is None or not isinstance(data, TrainingData):
            raise UserError(
                "data.influence is enabled, which needs a mixture and its held-out rows"
            )
        hooks.append(InfluenceMixture(settings.data.influence, data, held_out))
    if settings.telemetry_interval:
        hooks.append(Telemetry(train_step.model))
    if settings.evaluate_interval:
        if held_out is None:
            raise UserError(
                f"evaluate_interval is {settings.evaluate_interval}, but no held-out rows are given"
            )
        # Behind the telemetry, which is over then: it is of the step's rows alone.
        hooks.append(HeldOutLoss(held_out))
    if settings.averaging.name != "none":
        if held_out is None:
            raise UserError(
                f"averaging.name is {settings.averaging.name}, which compares by held-out rows, and"
                " none are given"
            )
        hooks.append(Averaging(settings.averaging, train_step.model, settings.steps, held_out))
    if settings.spikes.enabled:
        # The last but one: what it goes back on, the others have seen.
        hooks.append(Spikes(settings.spikes))
    return [*hooks, Movement()]


def _tracked(entry: dict[str, float]) -> dict[str, float]:
    """The metrics of an entry of the history, by the names that the tracking has."""
    metrics = {name: value for name, value in entry.items() if "/" in name}
    return metrics | {"train/tokens": entry["tokens"]}
