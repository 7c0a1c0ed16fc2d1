"""The influence-aware mixture: weights of the domains that follow what each does for a probe."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from wrinklefree.errors import UserError
from wrinklefree.mixture.batch import Batch
from wrinklefree.mixture.influence import influence_weights, smoothed_scores
from wrinklefree.mixture.loader import HeldOutData, TrainingData
from wrinklefree.mixture.settings import InfluenceSettings
from wrinklefree.train.data import samples_per_step
from wrinklefree.train.hooks import Hook, Training


class InfluenceMixture(Hook):
    """Changes the weights every ``interval`` steps, by the domains' scores at that moment.

    Its state is the list of updates, so that a resumed run reads the same rows. Of
    processes that train together each computes all scores.

    Raises
    ------
    UserError : the settings and the domains don't go together.
    """

    name = "influence"

    def __init__(
        self, settings: InfluenceSettings, data: TrainingData, held_out: HeldOutData
    ) -> None:
        self._settings = settings
        self._data = data
        self._held_out = held_out
        self._smoothed: dict[str, float] = {}
        self._events: list[dict[str, Any]] = []
        self._seconds = 0.0
        trained = sum(share > 0 for share in data.planned_weights_at(0).values())
        if settings.floor * trained >= 1:
            raise UserError(
                f"data.influence.floor {settings.floor:g} of {trained} domains leaves nothing to"
                " move; lower it"
            )
        if unknown := sorted(set(settings.target or {}) - set(data.domains)):
            raise UserError(
                f"data.influence.target names {', '.join(unknown)}, but the mixture has only"
                f" {', '.join(data.domains)}"
            )

    def state_dict(self) -> dict[str, Any]:
        """The updates so far, and the running scores."""
        return {"events": list(self._events), "smoothed": dict(self._smoothed)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what ``state_dict`` gave, but for updates of a mixture of other domains."""
        domains = set(self._data.domains)
        self._events = [one for one in state_dict["events"] if one["weights"].keys() == domains]
        self._smoothed = dict(state_dict["smoothed"])

    def on_start(self, training: Training) -> None:
        """Measure time from here."""
        self._started = time.monotonic()

    def on_restored(self, training: Training) -> None:
        """Put the updates so far into the order, and no others."""
        training.data = self._data
        for event in self._events:
            training.data = training.data.changed(event["first_sample"], event["weights"])

    def before_step(self, training: Training, step: int) -> dict[str, float]:
        """Update the weights where it is time; what was recorded of this step already stays."""
        settings = self._settings
        if self._events and self._events[-1]["step"] == step:
            return _told(self._events[-1]["scores"])
        if step == 0 or step % settings.interval:
            return {}
        started = time.monotonic()
        data, sample = _of_mixture(training), step * samples_per_step(training.settings)
        prior = data.planned_weights_at(sample)
        scores = self._scores(training, prior, step)
        self._smoothed = smoothed_scores(self._smoothed, scores, settings.smoothing)
        weights = influence_weights(
            prior, self._smoothed, step_size=settings.step_size, floor=settings.floor
        )
        changed = data.changed(sample, weights)
        if repeated := _repeated_too_often(training, changed):
            training.journal.say(
                f"{training.journal.label}: step {step}: weights stay, for others would read domain"
                f" {repeated} more often than mixture.max_repetition"
            )
            weights = data.weights_at(sample)
            changed = data.changed(sample, weights)
        self._events.append(
            {"step": step, "first_sample": sample, "weights": weights, "scores": scores}
        )
        training.data = changed
        self._seconds += time.monotonic() - started
        told = ", ".join(f"{name} {100 * share:.1f} %" for name, share in weights.items())
        training.journal.say(f"{training.journal.label}: step {step}: weights are {told}")
        return _told(scores)

    def after_step(self, training: Training, entry: dict[str, float]) -> None:
        """Report what the updates cost."""
        if self._events and self._events[-1]["step"] == training.state.step - 1:
            share = self._seconds / (time.monotonic() - self._started)
            training.journal.log(training.state.step, {"influence/share_of_time": share})

    def on_stop(self, training: Training) -> None:
        """Count what was read."""
        samples = training.state.step * samples_per_step(training.settings)
        self._epochs = _of_mixture(training).epochs(samples)

    def facts(self) -> dict[str, Any]:
        """The updates, with scores, and how often each domain was read."""
        return {"influence": self._events, "epochs": self._epochs}

    def _scores(self, training: Training, prior: dict[str, float], step: int) -> dict[str, float]:
        """Cosine of each trained domain's update with the gradient of the probe."""
        probe = self._probe_gradient(training, self._settings.target or prior)
        data, scores = _of_mixture(training), {}
        for domain in (name for name, share in prior.items() if share > 0):
            rows = data.domain_batch(domain, rows=self._settings.rows_per_domain, offset=step)
            gradient = _gradient(training, [(1.0, [rows])])
            scores[domain] = _cosine(training, gradient, probe)
        training.optimizer.zero_grad(set_to_none=True)
        training.optimizer.forget()
        # Where last bits differ between GPUs, the rows that follow must not.
        of_all = torch.tensor(list(scores.values()), dtype=torch.float64)
        return dict(zip(scores, training.runtime.maximum(of_all).tolist(), strict=True))

    def _probe_gradient(self, training: Training, target: dict[str, float]) -> list[Tensor]:
        rows = self._settings.rows_per_domain
        size = training.runtime.rows_of(training.settings.batch_size)
        parts = [
            (share, list(self._held_out.batches(domain, rows=rows, batch_size=size)))
            for domain, share in target.items()
            if share > 0
        ]
        if not any(batches for _, batches in parts):
            raise UserError("the probe of data.influence has no held-out rows; change its target")
        return _gradient(training, parts)


def _told(scores: dict[str, float]) -> dict[str, float]:
    return {f"influence/score/{name}": score for name, score in scores.items()}


def _gradient(training: Training, parts: list[tuple[float, list[Batch]]]) -> list[Tensor]:
    """Gradient of the weighted sum of the mean losses of some sets of rows, by parameter."""
    objective = training.train_step.objective
    training.optimizer.zero_grad(set_to_none=True)
    for share, batches in parts:
        prepared = [
            objective.corruption.prepare(batch.to(training.runtime.device), 0) for batch in batches
        ]
        denominator = sum(map(objective.corruption.denominator, prepared))
        for micro in prepared if denominator else ():
            with training.runtime.computing():
                output = objective.loss(training.train_step(micro), micro, denominator / share)
            output.loss.backward()
    return [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for parameter in training.model.parameters()
    ]


def _cosine(training: Training, gradient: list[Tensor], probe: list[Tensor]) -> float:
    """Between the update that the optimizer would make of ``gradient``, and ``probe``."""
    product = of_update = of_probe = 0.0
    for parameter, mine, theirs in zip(training.model.parameters(), gradient, probe, strict=True):
        update = training.optimizer.update_of(parameter, mine)
        product += torch.sum(update * theirs, dtype=torch.float64).item()
        of_update += torch.sum(update * update, dtype=torch.float64).item()
        of_probe += torch.sum(theirs * theirs, dtype=torch.float64).item()
    return product / math.sqrt(max(of_update * of_probe, 1e-60))


def _repeated_too_often(training: Training, data: TrainingData) -> str | None:
    """A domain that the whole run would read more often in ``data`` than is allowed."""
    epochs = data.epochs(training.settings.steps * samples_per_step(training.settings))
    return next((name for name, times in epochs.items() if times > data.max_repetition), None)


def _of_mixture(training: Training) -> TrainingData:
    assert isinstance(training.data, TrainingData), "rows of domains come from a mixture"
    return training.data
