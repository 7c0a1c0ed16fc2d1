"""Whether training moves the parameters, and about as far as the optimizer should.

What does not move says why: weights cast to bfloat16, whose rounding swallows small updates, and a
forgotten parameter both look like a loss that falls slowly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wrinklefree.optim.combined import CombinedOptimizer
from wrinklefree.quant.bitlinear import resting_scales

WATCHED_ENTRIES = 16_384
"""Entries of each parameter that are remembered: all of a smaller one, else a random sample. 17 MB
for a model of 272 tensors, and norms known to about 1 %."""
_STUCK_SHARE = 0.25


class FrozenParameterError(RuntimeError):
    """Parameters that training does not change; the message names them and says why."""


@dataclass(frozen=True)
class ParameterMovement:
    """How one parameter moved since the snapshot."""

    name: str
    moved: float
    """Frobenius norm of the change, estimated from the watched entries."""
    predicted: float
    """The norm if all updates agreed: what the optimizer expects of one, times the sum of learning
    rates. Weight decay and QK-clip are not in it."""
    unchanged: float
    """Share of the watched entries that are exactly as they were."""
    frozen_because: str | None


@dataclass(frozen=True)
class MovementReport:
    """All parameters, after ``steps`` steps."""

    steps: int
    parameters: list[ParameterMovement]
    norm_deviation: float
    """Largest distance from 1.0 of any gain of a norm; 0 without norms."""

    def metrics(self) -> dict[str, float]:
        """Numbers to log: extremes of the share of its prediction that a parameter moved."""
        ratios = [
            movement.moved / movement.predicted
            for movement in self.parameters
            if movement.predicted > 0
        ]
        return {
            "movement/smallest_ratio": min(ratios, default=0.0),
            "movement/largest_ratio": max(ratios, default=0.0),
            "movement/norm_deviation": self.norm_deviation,
        }


class MovementCheck:
    """Remembers the parameters now, and compares them after some steps.

    Parameters
    ----------
    model : every one of its parameters is expected to train.
    optimizer : of ``model``; its learning rates are read in every :meth:`observe`.
    steps : after which :attr:`due` turns true. Shorter runs call :meth:`check` at their end.
    """

    def __init__(self, model: nn.Module, optimizer: CombinedOptimizer, *, steps: int = 100) -> None:
        self._model = model
        self._parameters = dict(model.named_parameters())
        self._optimizer = optimizer
        self._steps = steps
        self._before = {name: _watched(p).clone() for name, p in self._parameters.items()}
        self._group_of = {
            id(parameter): index
            for index, group in enumerate(optimizer.param_groups)
            for parameter in group["params"]
        }
        self._rate_sums = [0.0 for _ in optimizer.param_groups]
        self._without_gradient = set(self._parameters)
        self._with_zero_gradient = set(self._parameters)
        self.observed = 0
        """Steps observed."""

    @property
    def due(self) -> bool:
        """Whether exactly the asked number of steps has been observed."""
        return self.observed == self._steps

    def observe(self) -> None:
        """Take note of a step; call after the optimizer's, before gradients are cleared."""
        self.observed += 1
        for index, group in enumerate(self._optimizer.param_groups):
            self._rate_sums[index] += float(group["lr"])
        for name in list(self._with_zero_gradient):
            gradient = self._parameters[name].grad
            if gradient is not None:
                self._without_gradient.discard(name)
                if bool(gradient.any()):
                    self._with_zero_gradient.discard(name)

    def check(self) -> MovementReport:
        """Compare with the snapshot; call after at least one :meth:`observe`.

        Raises
        ------
        FrozenParameterError : a parameter has not changed at all; or it is stored in less than 32
            bits and a quarter of its entries have not (embeddings and stacks of experts apart, of
            which training may use a part).
        """
        assert self.observed > 0
        resting = resting_scales(self._model)
        movements = [self._movement(name) for name in self._parameters if name not in resting]
        frozen = [f"{m.name}: {m.frozen_because}" for m in movements if m.frozen_because]
        if frozen:
            raise FrozenParameterError(
                f"{len(frozen)} of {len(movements)} parameters did not train in"
                f" {self.observed} steps\n  " + "\n  ".join(frozen)
            )
        gains = [
            parameter
            for name, parameter in self._parameters.items()
            if name.endswith("norm.weight")
        ]
        deviations = [(gain.detach().float() - 1.0).abs().max().item() for gain in gains]
        return MovementReport(self.observed, movements, max(deviations, default=0.0))

    def _movement(self, name: str) -> ParameterMovement:
        parameter = self._parameters[name]
        change = _watched(parameter) - self._before[name]
        scale = math.sqrt(parameter.numel() / change.numel())
        unchanged = (change == 0).float().mean().item()
        return ParameterMovement(
            name=name,
            moved=torch.linalg.vector_norm(change).item() * scale,
            predicted=self._predicted(parameter),
            unchanged=unchanged,
            frozen_because=self._reason(name) if self._is_frozen(parameter, unchanged) else None,
        )

    def _predicted(self, parameter: nn.Parameter) -> float:
        index = self._group_of.get(id(parameter))
        if index is None:
            return 0.0
        return self._rate_sums[index] * self._optimizer.expected_update_norm(parameter)

    def _is_frozen(self, parameter: nn.Parameter, unchanged: float) -> bool:
        if unchanged == 1.0:
            return True
        index = self._group_of.get(id(parameter))
        kind = None if index is None else self._optimizer.param_groups[index]["kind"]
        partly_used = kind in ("embedding", "expert_stack")
        return parameter.dtype.itemsize < 4 and not partly_used and unchanged > _STUCK_SHARE

    def _reason(self, name: str) -> str:
        parameter = self._parameters[name]
        index = self._group_of.get(id(parameter))
        if index is None:
            return "it is not in the optimizer"
        if not parameter.requires_grad:
            return "requires_grad is false"
        if name in self._without_gradient:
            return "it had no gradient; the loss does not depend on it"
        if name in self._with_zero_gradient:
            return "its gradient was zero in every step"
        if self._rate_sums[index] == 0:
            return "its learning rate was zero in every step"
        return self._precision_reason(parameter)

    def _precision_reason(self, parameter: nn.Parameter) -> str:
        update = self._predicted(parameter) / math.sqrt(parameter.numel()) / self.observed
        typical = parameter.detach().float().square().mean().sqrt().item()
        spacing = torch.finfo(parameter.dtype).eps * typical
        dtype = str(parameter.dtype).removeprefix("torch.")
        if dtype == "float32" and update > spacing:
            return "gradient and learning rate are not zero, yet no step was applied to it"
        return (
            f"precision: {dtype} holds weights of {typical:.2g} in steps of about {spacing:.1g}, an"
            f" update is about {update:.1g}; keep parameters in float32, or raise the learning rate"
        )


def _watched(parameter: nn.Parameter) -> Tensor:
    """The entries that are compared, as float32; the same ones at each call."""
    flat = parameter.detach().reshape(-1)
    if flat.numel() > WATCHED_ENTRIES:
        generator = torch.Generator().manual_seed(flat.numel())
        chosen = torch.randint(flat.numel(), (WATCHED_ENTRIES,), generator=generator)
        flat = flat[chosen.to(flat.device)]
    return flat.float()
