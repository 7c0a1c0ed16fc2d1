"""How strong the terms of a teacher are: ratios of gradients."""

from __future__ import annotations

import math
import statistics
from typing import Any

from wrinklefree.errors import UserError
from wrinklefree.stability.norm import gradient_norm
from wrinklefree.train.gradient_ratio_settings import GradientRatioSettings
from wrinklefree.train.hooks import Hook, Training
from wrinklefree.train.objectives.objective import CROSS_ENTROPY

_OF_ROUNDING = 1e-4
"""A ratio below this is not a lesson before full strength: student and teacher are one model."""


class GradientRatios(Hook):
    """Measures the ratios, and gives a term with a target the weight that it takes.

    The ratio of a term is the norm of its weighted gradient over that of the cross-entropy with
    weight 1, of all parameters and the first micro-batch of a step. A target's weight follows from
    the mean over the first ``steps`` measurements, and from ``full_strength_from`` on of those from
    there, for a student that is hardly quantized is near its teacher. Where it is its teacher yet,
    nothing is decided, and the term has weight 1. They are its state, so that a resumed run has the
    same weights.

    Parameters
    ----------
    full_strength_from : step, from 0, at which quantization is done growing.
    """

    name = "gradient_ratios"

    def __init__(self, settings: GradientRatioSettings, full_strength_from: int) -> None:
        self._settings = settings
        self._full_strength_from = full_strength_from
        self._measured: dict[str, dict[str, float]] = {name: {} for name in settings.targets}

    def state_dict(self) -> dict[str, Any]:
        """Ratios at weight 1 of terms with a target, by the number of the step."""
        return {"measured": {name: dict(ratios) for name, ratios in self._measured.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what ``state_dict`` gave of terms that have a target now."""
        found = state_dict["measured"]
        self._measured = {name: dict(found.get(name, {})) for name in self._settings.targets}

    def on_restored(self, training: Training) -> None:
        """Give the terms the weights that were measured."""
        self._weigh(training)

    def before_step(self, training: Training, step: int) -> dict[str, float]:
        """Measure where it is time."""
        settings, full = self._settings, step >= self._full_strength_from
        deciding = [
            (name, found)
            for name, found in self._measured.items()
            if str(step) in found  # where a signal cut it off
            or len(self._of(found, full)) < settings.steps
        ]
        if not deciding and not (settings.interval and step % settings.interval == 0):
            return {}
        ratios = self._ratios(training, step)
        for name, found in deciding:
            if ratios.get(name, 0.0) > (0.0 if full else _OF_ROUNDING):
                found[str(step)] = ratios[name]
        self._weigh(training)
        weights = training.train_step.objective.weights
        return {f"distill/{name}_ratio": weights[name] * ratio for name, ratio in ratios.items()}

    def facts(self) -> dict[str, Any]:
        """The weights of terms with a target."""
        return {"weights_by_gradient_ratio": self._weights()} if self._measured else {}

    def _weights(self) -> dict[str, float]:
        targets = self._settings.targets
        return {
            name: targets[name] / statistics.fmean(self._of(found, True) or self._of(found, False))
            for name, found in self._measured.items()
            if found
        }

    def _of(self, found: dict[str, float], full: bool) -> list[float]:
        """The measurements at full strength, or those before it."""
        first = self._full_strength_from
        return [ratio for step, ratio in found.items() if (int(step) >= first) == full]

    def _weigh(self, training: Training) -> None:
        training.train_step.objective.weights.update(self._weights())

    def _ratios(self, training: Training, step: int) -> dict[str, float]:
        """Of every term at weight 1, but for those that are not finite."""
        objective, parameters = training.train_step.objective, list(training.model.parameters())
        micro = objective.corruption.prepare(training.batch(step, 0), step)
        (denominator,) = training.runtime.sum(objective.corruption.denominator(micro))
        norms: dict[str, float] = {}
        for name, weight in objective.weights.items():
            if not weight and name != CROSS_ENTROPY:
                continue
            training.optimizer.zero_grad(set_to_none=True)
            with training.runtime.computing():
                output = objective.alone(name).loss(training.train_step(micro), micro, denominator)
            output.loss.backward()
            training.runtime.sum_gradients(parameters)
            norms[name] = gradient_norm([p.grad for p in parameters if p.grad is not None])
        training.optimizer.zero_grad(set_to_none=True)
        training.optimizer.forget()
        text = norms.pop(CROSS_ENTROPY)
        for name in self._measured:
            if step >= self._full_strength_from and not (text and norms[name]):
                raise UserError(
                    f"gradient_ratios.{name} is {self._settings.targets[name]:g}, but at step"
                    f" {step + 1} the gradient of {name if text else CROSS_ENTROPY} is 0: give the"
                    " term a weight instead"
                )
        return {
            name: norm / text
            for name, norm in norms.items()
            if text and math.isfinite(norm) and math.isfinite(text)
        }
