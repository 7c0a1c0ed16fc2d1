"""What every way of clipping gradients has in common."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

Gradients = nn.Module | Iterable[nn.Parameter]
"""A model, or those of its parameters whose gradients are clipped."""


@dataclass(frozen=True)
class ClipStats:
    """What happened to the gradients of one step."""

    raw_norm: float
    """Before clipping."""
    clipped_norm: float
    """After clipping; equal to ``raw_norm`` if nothing was clipped."""
    was_clipped: bool
    finite: bool
    """Whether the gradients can be used: if not, they were left as they are."""
    z_score: float = 0.0
    """Of ZClip; 0 while it gathers statistics, except at a spike."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What this clipper alone can report, by the name to log it under."""


class Clipper(Protocol):
    """Decides how much of a step's gradients is used."""

    def clip(self, parameters: Gradients) -> ClipStats:
        """Clip the gradients in place; call once per step, before the optimizer's."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that later decisions depend on besides the settings; numbers and lists only."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        ...


def parameters_of(given: Gradients) -> list[nn.Parameter]:
    """All of them, with and without a gradient."""
    return list(given.parameters() if isinstance(given, nn.Module) else given)


def gradients_of(given: Gradients) -> list[Tensor]:
    """The gradients that there are."""
    return [p.grad for p in parameters_of(given) if p.grad is not None]
