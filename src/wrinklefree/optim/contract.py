"""What every optimizer of this room offers beside torch's interface.

The training asks three things: how far a step goes (the movement check), what the state looks like
(a checkpoint is checked before it is used), and numbers to log.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Group = dict[str, Any]
"""A parameter group: ``params``, ``kind``, ``lr``, ``initial_lr``, settings of its optimizer."""


class Part(Protocol):
    """An optimizer of some of the parameters."""

    param_groups: list[Group]
    state: Any

    def step(self) -> Any:
        """Update every parameter that has a gradient."""
        ...

    def initial_state(self, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        """The state before the first step, on the device of ``parameter`` (``meta`` too)."""
        ...

    def expected_update_norm(self, parameter: Tensor, group: Group) -> float:
        """Frobenius norm of one update at learning rate 1, without weight decay."""
        ...

    def direction(self, parameter: Tensor, gradient: Tensor, group: Group) -> Tensor:
        """What a learning rate of 1 would subtract for ``gradient``, without momentum's past.

        How sizes of entries, rows or matrices are evened out follows the gradients before.
        """
        ...


class PerParameterOptimizer(Optimizer):
    """Steps parameters one after the other; those without gradient are left alone."""

    sizes: ClassVar[tuple[str, ...]] = ()
    """Parts of the state that measure how large gradients were; others are momentum."""

    @abstractmethod
    def initial_state(self, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        """See :class:`Part`."""

    @abstractmethod
    def expected_update_norm(self, parameter: Tensor, group: Group) -> float:
        """See :class:`Part`."""

    @torch.no_grad()
    def direction(self, parameter: Tensor, gradient: Tensor, group: Group) -> Tensor:
        """See :class:`Part`: a first step, but for the sizes of the gradients before."""
        probe = nn.Parameter(torch.zeros_like(parameter))
        probe.grad = gradient
        state = self.state_without_momentum(parameter, group)
        self.step_parameter(probe, state, group | {"lr": 1.0, "weight_decay": 0.0})
        return -probe.detach()

    def state_without_momentum(self, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        """The state before the first step, with a copy of the present ``sizes``, if any."""
        present = self.state.get(parameter) or {}
        sizes = {name: present[name].clone() for name in self.sizes if present}
        return self.initial_state(parameter, group) | sizes

    @abstractmethod
    def step_parameter(self, parameter: nn.Parameter, state: dict[str, Tensor], group: Group):
        """Update ``parameter``, which has a gradient, and ``state``, both in place."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step for every parameter that has a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state.update(self.initial_state(parameter, group))
                    self.step_parameter(parameter, state, group)
        return loss
