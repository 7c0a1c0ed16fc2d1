"""The one training loop.

A step is a function of (settings, data, step): learning rate, quantization strength, rows and noise
all follow from the step's number, so a run that was killed and resumed takes the same steps.

Parameters and optimizer state are fp32 (a model cast to bf16 loses most updates of a normal size);
bfloat16 is used inside autocast only.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.mixture.batch import Batch
from wrinklefree.mixture.loader import TrainingData
from wrinklefree.models.finite import first_not_finite
from wrinklefree.models.forward import require_embeddings, require_positions
from wrinklefree.optim.build import build_optimizer
from wrinklefree.optim.combined import CombinedOptimizer
from wrinklefree.optim.schedule import learning_rate_fraction
from wrinklefree.quant.bitlinear import set_quantization_lambda
from wrinklefree.quant.warmup import quantization_lambda
from wrinklefree.stability.gradients import GradientWarning, first_non_finite, gradient_health
from wrinklefree.stability.loss_variance import split_variance
from wrinklefree.stability.movement import FrozenParameterError, MovementCheck
from wrinklefree.stability.zclip import ZClip
from wrinklefree.tracking.progress import Progress
from wrinklefree.tracking.signals import HeldSignals, held_signals
from wrinklefree.tracking.stage import Stage
from wrinklefree.tracking.trainings import continued_from
from wrinklefree.train.data import samples_per_step
from wrinklefree.train.held_out import HELD_OUT, HeldOutLoss
from wrinklefree.train.history import write_history
from wrinklefree.train.objectives.objective import LossOutput, Objective
from wrinklefree.train.settings import QuantizedTrainingSettings, TrainingSettings
from wrinklefree.train.state import TrainingState

MOVEMENT_STEPS = 100


class _StepAbandonedError(Exception):
    """A step that a signal cut off before anything was changed by it."""


@dataclass(frozen=True)
class _StepTotals:
    """Sums over the micro-batches of one step."""

    objective: float
    row_loss: float
    row_tokens: float
    domains: dict[str, float]
    """Metrics of what the rows of the step, and of each domain among them, lost."""
    terms: dict[str, float]
    tokens: int


class Trainer:
    """Takes a model through the steps of one stage, with checkpoints, tracking and progress.

    Parameters
    ----------
    check_first_loss : called with the loss of the first step (nats per token); raises UserError
        when training should not go on from there.
    """

    def __init__(
        self,
        stage: Stage,
        model: PreTrainedModel,
        objective: Objective,
        data: TrainingData,
        settings: TrainingSettings,
        *,
        check_first_loss: Callable[[float], None] | None = None,
    ) -> None:
        _refuse_low_precision(model)
        require_embeddings(model, data.vocabulary_size)
        require_positions(model, data.sequence_length)
        self.stage = stage
        self.settings = settings
        self.check_first_loss = check_first_loss
        self.objective = objective
        self.data = data
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.train()
        nn.Module.to(model, self.device)  # in place; transformers' own method hides its type
        self.optimizer = build_optimizer(self.model, settings.optimizer)
        self.clipper = ZClip(settings.zclip)
        self.warnings: Counter[GradientWarning] = Counter()
        self.state = TrainingState(
            self.model, {"optimizer": self.optimizer, "clipper": self.clipper}
        )
        self.signals = HeldSignals()
        self.held_out = (
            HeldOutLoss(stage, objective, settings) if settings.evaluate_interval else None
        )

    def run(self) -> dict[str, Any]:
        """Train to the last step and write ``history.jsonl`` into the stage's folder.

        Returns
        -------
        Facts: steps, tokens, first and last loss (nats per token).
        """
        self._restore()
        for entry in self.state.history:  # of which a killed process may not have sent the last
            self.stage.run.log_metrics(int(entry["step"]), _tracked(entry))
        self.resumed_at = self.state.step
        label = self.stage.terminal.label
        progress = Progress(label, "steps", self.settings.steps, self.state.step)
        # Made after the checkpoint is loaded: it compares with the parameters of this moment.
        self.movement = MovementCheck(self.model, self.optimizer, steps=MOVEMENT_STEPS)
        with contextlib.closing(progress), held_signals() as self.signals:
            with contextlib.suppress(_StepAbandonedError):
                while self.state.step < self.settings.steps:
                    self._advance(progress)
            if self.signals.received:
                self._save_before_leaving(self.signals.received.name)
        self._set_lambda(self.settings.steps)
        write_history(self.stage.folder, self.state.history)
        return self._facts()

    def _restore(self) -> None:
        """Go on from where a killed process was, or from what the user asked for."""
        terminal, state, work = self.stage.terminal, self.state, self.stage.work
        passed_over = state.restore(work)
        for complaint in passed_over:
            terminal.say(f"warning: a checkpoint was passed over: {complaint}")
        if source := self.stage.continuation:
            left = self.settings.steps - source.training.step
            if left <= 0:
                raise UserError(
                    f"steps is {self.settings.steps}, and the training to go on from has taken"
                    f" {source.training.step}: raise steps. {source.advice}"
                )
            try:
                state.adopt(source.training.checkpoint, source.training.step)
            except UserError as error:
                raise UserError(f"it can't be gone on from: {error}. {source.advice}") from error
            state.save(work)
            source.taken_up(work)
            self.stage.run.log_tags({"wrinklefree.continued_from": json.dumps(source.event)})
            terminal.say(f"{terminal.label}: continues {source.training.folder}")
        elif not state.step and continued_from(work):
            raise UserError(
                f"{work}: no checkpoint can be read of this training, which had gone on from"
                " another one; delete the folder to start from the beginning"
            )
        if state.step or passed_over:
            terminal.say(f"{terminal.label}: going on from step {state.step}")

    def _advance(self, progress: Progress) -> None:
        """Take a step, and all that follows from it."""
        started = time.monotonic()
        entry = self._step(self.state.step)
        seconds = time.monotonic() - started
        step = self.state.step + 1
        if self.held_out and self._is_due(self.settings.evaluate_interval, step):
            entry |= self.held_out.measure(self.model, self._autocast)
        self.state.history.append(entry)
        self.state.step = step
        if step == 1 and self.check_first_loss and "train/loss" in entry:
            self.check_first_loss(entry["train/loss"])
        self._check_movement()
        self._report(progress, entry, seconds)
        if self._is_due(self.settings.checkpoint_interval, step):
            self.state.save(self.stage.work)

    def _save_before_leaving(self, signal: str) -> None:
        if self.state.saved != self.state.step:
            terminal, step = self.stage.terminal, self.state.step
            terminal.say(f"{terminal.label}: {signal} came; step {step} is saved before leaving")
            self.state.save(self.stage.work)

    def _step(self, step: int) -> dict[str, float]:
        rate = self._set_learning_rate(step)
        strength = self._set_lambda(step)
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
        self.movement.observe()
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
            "train/zclip_ema_mean": clip.ema_mean,
            "train/zclip_ema_std": clip.ema_std,
        }
        if strength is not None:
            entry["train/lambda"] = strength
        if isinstance(self.optimizer, CombinedOptimizer):
            entry |= self.optimizer.metrics()
        return entry | self._weights(step) | totals.domains | totals.terms

    def _skip(self, step: int, totals: _StepTotals) -> dict[str, float]:
        """The entry of a step that is not applied, or the error where it is one too many."""
        taken, most = self._skipped(), self.settings.max_skipped_steps
        if taken >= most or first_not_finite(self.model):
            raise UserError(self._divergence(step, totals))
        self.stage.terminal.say(
            f"warning: step {step + 1} is skipped: {self._culprit()} is not finite (loss"
            f" {totals.objective:g}); {taken + 1} of {most} steps that may be"
        )
        entry: dict[str, float] = {
            "step": step + 1,
            "tokens": self._tokens_so_far(),
            "train/skipped": 1.0,
        }
        return entry | self._weights(step)

    def _skipped(self) -> int:
        return sum("train/skipped" in entry for entry in self.state.history)

    def _tokens_so_far(self) -> float:
        return self.state.history[-1]["tokens"] if self.state.history else 0

    def _backward(self, step: int) -> _StepTotals:
        """Gradients of the whole step, micro-batch by micro-batch, under one denominator."""
        count = self.settings.gradient_accumulation_steps
        prepared = [
            self.objective.prepare(self._batch(step, index), step) for index in range(count)
        ]
        denominator = sum(self.objective.denominator(micro) for micro in prepared)
        assert denominator > 0, "a step without a supervised token"
        outputs = []
        for micro in prepared:
            if self.signals.received:
                raise _StepAbandonedError
            with self._autocast():
                output = self.objective.loss(self.model, micro, denominator)
            output.loss.backward()
            outputs.append(replace(output, loss=output.loss.detach()))
        return self._totals([micro.batch for micro in prepared], outputs)

    def _totals(self, batches: list[Batch], outputs: list[LossOutput]) -> _StepTotals:
        loss_B = torch.cat([output.row_loss_B for output in outputs]).double()
        tokens_B = torch.cat([output.row_tokens_B for output in outputs]).double()
        domain_B = torch.cat([batch.domain_B for batch in batches])
        terms: dict[str, float] = {}
        for output in outputs:
            for name, value in output.terms.items():
                terms[name] = terms.get(name, 0.0) + float(value)
        return _StepTotals(
            objective=sum(output.loss.item() for output in outputs),
            row_loss=loss_B.sum().item(),
            row_tokens=tokens_B.sum().item(),
            domains=domain_metrics(loss_B, tokens_B, domain_B, self.data.domains),
            terms=terms,
            tokens=sum(int((batch.document_ids_BT >= 0).sum()) for batch in batches),
        )

    def _weights(self, step: int) -> dict[str, float]:
        """The shares of the domains that the step's rows were drawn for."""
        weights = self.data.weights_at(step * samples_per_step(self.settings))
        return {f"train/weight/{domain}": weight for domain, weight in weights.items()}

    def _batch(self, step: int, micro_batch: int) -> Batch:
        batch = self.data.batch(
            step,
            micro_batch,
            batch_size=self.settings.batch_size,
            micro_batches=self.settings.gradient_accumulation_steps,
        )
        return batch.to(self.device)

    def _set_learning_rate(self, step: int) -> float:
        fraction = learning_rate_fraction(step, self.settings.steps, self.settings.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * fraction
        return self.settings.optimizer.chosen.lr * fraction

    def _set_lambda(self, step: int) -> float | None:
        if not isinstance(self.settings, QuantizedTrainingSettings):
            return None
        strength = quantization_lambda(step, self.settings.lambda_warmup)
        set_quantization_lambda(self.model, strength)
        return strength

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.settings.autocast == "none":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _warn(self, step: int, warning: GradientWarning) -> None:
        """Say a warning when it first comes; after that it is counted only."""
        if not self.warnings[warning]:
            self.stage.terminal.say(f"warning: step {step + 1}: {warning}")
        self.warnings[warning] += 1

    def _check_movement(self) -> None:
        """After 100 steps, or at the end of a shorter run: did every parameter move?

        The last steps of a resumed run are not enough to tell: their rates may be near zero.
        """
        short = self.state.step == self.settings.steps < MOVEMENT_STEPS and not self.resumed_at
        if not (self.movement.due or short):
            return
        try:
            report = self.movement.check()
        except FrozenParameterError as error:
            raise UserError(str(error)) from error
        self.stage.run.log_metrics(self.state.step, report.metrics())

    def _is_due(self, interval: int, step: int) -> bool:
        return step % interval == 0 or step == self.settings.steps

    def _report(self, progress: Progress, entry: dict[str, float], seconds: float) -> None:
        step = self.state.step
        before = self.state.history[-2]["tokens"] if step > 1 else 0
        speed = (entry["tokens"] - before) / seconds
        self.stage.run.log_metrics(step, _tracked(entry) | {"train/tokens_per_second": speed})
        words = [f"loss {entry['train/loss']:.3f}" if "train/loss" in entry else "skipped"]
        if (held_out := entry.get(HELD_OUT)) is not None:
            words.append(f"held out {held_out:.3f}")
        line = self._is_due(self.settings.log_interval, step) or held_out is not None
        progress.advance(note=", ".join([*words, f"{speed:,.0f} tokens/s"]), line=line)

    def _divergence(self, step: int, totals: _StepTotals) -> str:
        """What is not finite and what to do. Before the first update no rate can be the cause."""
        if broken := first_not_finite(self.model):
            where = f"{broken[1]} values of {broken[0]}, before the step,"
        else:
            where = self._culprit()
        advice = "Lower the learning rate or lengthen its warmup, and run again"
        if step == self._skipped():
            advice = (
                "No update was made yet, so the learning rate is not the cause: the model's weights"
                " or numbers of its configuration are (rope_theta, rms_norm_eps,"
                " initializer_range). Correct them, or start from another base"
            )
        return (
            f"step {step + 1}: {where} {'are' if broken else 'is'} not finite (loss"
            f" {totals.objective:g}); the step was not applied and the last checkpoint is"
            f" untouched. {advice}{self._skipped_before()}"
        )

    def _skipped_before(self) -> str:
        count = self._skipped()
        return f". Steps skipped before it, as max_skipped_steps allows: {count}" if count else ""

    def _culprit(self) -> str:
        """Where the gradients of the present step are not finite."""
        name = first_non_finite(self.model.named_parameters())
        return f"the gradient of {name}" if name else "the loss or the gradient norm"

    def _facts(self) -> dict[str, Any]:
        history = self.state.history
        taken = [entry for entry in history if "train/skipped" not in entry]
        return {
            "steps": len(history),
            "steps_skipped": len(history) - len(taken),
            "tokens": int(history[-1]["tokens"]),
            "loss_first": taken[0]["train/loss"],
            "loss_last": taken[-1]["train/loss"],
            "steps_clipped": int(sum(entry["train/grad_clipped"] for entry in taken)),
        }


def _tracked(entry: dict[str, float]) -> dict[str, float]:
    """The metrics of an entry of the history, by the names that the tracking has."""
    metrics = {name: value for name, value in entry.items() if "/" in name}
    return metrics | {"train/tokens": entry["tokens"]}


def domain_metrics(
    loss_B: Tensor, tokens_B: Tensor, domain_B: Tensor, names: list[str]
) -> dict[str, float]:
    """Loss of each domain in a step, its share of the supervised tokens, and the loss's variance.

    Parameters
    ----------
    loss_B, tokens_B : float64, summed nats and supervised tokens of each row of the step.
    domain_B : int64, index of each row's domain in ``names``.

    Returns
    -------
    ``train/loss/<domain>`` (nats per token) and ``train/share/<domain>`` of the domains that have
    supervised tokens; ``train/loss_variance`` over rows by tokens (nats²), which is the sum of
    ``train/loss_variance_within`` and ``train/loss_variance_between`` domains.
    """
    metrics: dict[str, float] = {}
    for index, name in enumerate(names):
        chosen_B = domain_B == index
        if (count := tokens_B[chosen_B].sum().item()) > 0:
            metrics[f"train/loss/{name}"] = loss_B[chosen_B].sum().item() / count
            metrics[f"train/share/{name}"] = count / tokens_B.sum().item()
    mean_B = loss_B / tokens_B.clamp(min=1.0)
    split = split_variance(*(t.cpu().numpy() for t in (mean_B, tokens_B, domain_B)))
    return metrics | {
        "train/loss_variance": split.total,
        "train/loss_variance_within": split.within,
        "train/loss_variance_between": split.between,
    }


def _refuse_low_precision(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise UserError(
                f"parameter {name} is {parameter.dtype}, and training needs float32: smaller types"
                " lose most updates of a normal size. Use autocast: bfloat16 for speed instead"
            )
