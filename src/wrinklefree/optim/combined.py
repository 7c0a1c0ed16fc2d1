"""Several optimizers behind the interface of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch.optim import Optimizer


class AfterStep(Protocol):
    """What is done to the parameters once a step has been taken, such as QK-clip."""

    def __call__(self) -> None:
        """Do it."""
        ...

    def metrics(self) -> dict[str, float]:
        """Numbers to log about the latest call."""
        ...


class CombinedOptimizer(Optimizer):
    """Optimizers of disjoint parameters, with one list of groups and one state.

    Its ``state_dict`` has the format of every torch optimizer.

    Parameters
    ----------
    parts : stepped in this order; they must not be used on their own afterwards.
    after_step : called when all parameters have been updated.

    Raises
    ------
    ValueError : two parts share a parameter.
    """

    def __init__(self, parts: Sequence[Optimizer], after_step: AfterStep | None = None) -> None:
        super().__init__([group for part in parts for group in part.param_groups], defaults={})
        self._parts = list(parts)
        self._group_counts = [len(part.param_groups) for part in parts]
        self._after_step = after_step

    def metrics(self) -> dict[str, float]:
        """Numbers to log about the latest step, beyond those of every optimizer."""
        return self._after_step.metrics() if self._after_step else {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Step every part, then call ``after_step``; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        start = 0
        for part, count in zip(self._parts, self._group_counts, strict=True):
            # load_state_dict replaces state and groups, so the parts are pointed at them each time.
            part.state = self.state
            part.param_groups = self.param_groups[start : start + count]
            part.step()
            start += count
        if self._after_step is not None:
            self._after_step()
        return loss
