"""Several optimizers behind the interface of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from wrinklefree.optim.contract import Group, Part

Maximum = Callable[[Tensor], Tensor]
"""The largest of each entry over all processes that train a model together."""


class AfterStep(Protocol):
    """What is done to the parameters once a step has been taken, such as QK-clip."""

    def __call__(self) -> None:
        """Do it."""
        ...

    def metrics(self) -> dict[str, float]:
        """Numbers to log about the latest call."""
        ...

    def forget(self) -> None:
        """Leave out what was seen since the latest call: it was no part of a step."""
        ...

    def combine(self, maximum: Maximum) -> None:
        """Take in what other processes saw since the latest call."""
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

    def __init__(self, parts: Sequence[Part], after_step: AfterStep | None = None) -> None:
        super().__init__([group for part in parts for group in part.param_groups], defaults={})
        self._parts = list(parts)
        self._part_of_group = [part for part in parts for _ in part.param_groups]
        self._after_step = after_step

    def metrics(self) -> dict[str, float]:
        """Numbers to log about the latest step, beyond those of every optimizer."""
        return self._after_step.metrics() if self._after_step else {}

    def facts(self) -> dict[str, Any]:
        """What the machine decided: the type in which matrices are orthogonalized, if any are."""
        types = {group["compute"] for group in self.param_groups if "compute" in group}
        return {"orthogonalized_in": types.pop()} if types else {}

    def expected_update_norm(self, parameter: Tensor) -> float:
        """Frobenius norm of one update at learning rate 1, without weight decay.

        Exact for momenta of full rank (Muon) and for steady gradients (AdamW), else a bound.
        """
        part, group = self._owner(parameter)
        return part.expected_update_norm(parameter, group)

    @torch.no_grad()
    def update_of(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """What the present learning rate would subtract for a gradient, without momentum's past.

        The preconditioner is the present one; nothing is changed.
        """
        part, group = self._owner(parameter)
        part.state = self.state
        return part.direction(parameter, gradient, group) * group["lr"]

    def forget(self) -> None:
        """Leave out of ``after_step`` what it saw since the latest step."""
        if self._after_step is not None:
            self._after_step.forget()

    def combine(self, maximum: Maximum) -> None:
        """Let ``after_step`` see what it saw in all processes since the latest step."""
        if self._after_step is not None:
            self._after_step.combine(maximum)

    def state_layout(self, parameter: Tensor) -> dict[str, Tensor]:
        """Tensors without memory (device ``meta``) like those of the state of ``parameter``."""
        part, group = self._owner(parameter)
        return part.initial_state(torch.empty_like(parameter, device="meta"), group)

    def _owner(self, parameter: Tensor) -> tuple[Part, Group]:
        for part, group in zip(self._part_of_group, self.param_groups, strict=True):
            if any(parameter is own for own in group["params"]):
                return part, group
        raise KeyError("the parameter is not in the optimizer")

    def table(self) -> list[str]:
        """Lines that say which kinds of parameters each part trains, within 80 columns."""
        tensors, entries = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        for part, group in zip(self._part_of_group, self.param_groups, strict=True):
            row = (group["kind"], type(part).__name__)
            tensors[row] += len(group["params"])
            entries[row] += sum(parameter.numel() for parameter in group["params"])
        rows = [(*row, f"{tensors[row]:,}", f"{entries[row]:,}") for row in tensors]
        rows.append(("all", "", f"{tensors.total():,}", f"{entries.total():,}"))
        headings = ("parameters", "optimizer", "tensors", "entries")
        return [f"{a:<14}{b:<14}{c:>10}{d:>20}" for a, b, c, d in [headings, *rows]]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what ``state_dict`` gave, with every tensor in the type that it was saved in."""
        super().load_state_dict(state_dict)
        # torch has cast all state to the type of its parameter: quantized state would be floats.
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for parameter, number in zip(group["params"], saved["params"], strict=True):
                state = self.state[parameter] if number in state_dict["state"] else {}
                for name, cast in state.items():
                    state[name] = state_dict["state"][number][name].to(cast.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Step every part, then call ``after_step``; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        start = 0
        for part in self._parts:
            # load_state_dict replaces state and groups, so the parts are pointed at them each time.
            stop = start + len(part.param_groups)
            part.state, part.param_groups = self.state, self.param_groups[start:stop]
            part.step()
            start = stop
        if self._after_step is not None:
            self._after_step()
        return loss
