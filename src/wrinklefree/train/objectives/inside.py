"""What terms of a loss look at inside of a model, in student and teacher alike.

Shapes: B rows, T tokens of a row, D hidden size, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.models.depths import Choice, captured_choices
from wrinklefree.models.experts import captured_routers
from wrinklefree.models.projections import Projections, captured_projections
from wrinklefree.models.states import captured_states


@dataclass(frozen=True)
class Looks:
    """Where to look, by numbers of decoder layers."""

    projections: Sequence[int] = ()
    """Queries, keys and values of these layers."""
    states: Sequence[int] = ()
    """What leaves these layers."""
    routers: bool = False
    """How all routers choose."""
    choices: bool = False
    """Which tokens layers compute that leave some out."""


@dataclass(frozen=True)
class Seen:
    """What is there; gradients flow through it."""

    projections: Sequence[Projections]
    states_BTD: Sequence[Tensor]
    router_logits_BTE: Sequence[Tensor] = ()
    """Of each router, in order."""
    choices: Sequence[Choice] = ()
    """Of each layer that leaves tokens out, in order."""

    def rows(self, start: int, stop: int, *, batch: int) -> Seen:
        """Tokens ``start`` to ``stop`` of the first ``batch`` rows."""
        projections = [one.rows(start, stop, batch=batch) for one in self.projections]
        states, logits = (
            [tensor[:batch, start:stop] for tensor in tensors]
            for tensors in (self.states_BTD, self.router_logits_BTE)
        )
        choices = [Choice(*(one[:batch, start:stop] for one in each)) for each in self.choices]
        return Seen(projections, states, logits, choices)


@contextmanager
def looking(
    model: PreTrainedModel, looks: Mapping[str, Looks]
) -> Iterator[Callable[[], dict[str, Seen]]]:
    """Look while the model runs inside the context; what is given tells, after the run."""
    layers = {layer for look in looks.values() for layer in look.projections}
    every = {layer for look in looks.values() for layer in look.states}
    with ExitStack() as stack:
        projections = stack.enter_context(captured_projections(model, layers))
        states = stack.enter_context(captured_states(model, every))
        routers: list[Tensor] = []
        if any(look.routers for look in looks.values()):
            routers = stack.enter_context(captured_routers(model))
        choices: list[Choice] = []
        if any(look.choices for look in looks.values()):
            choices = stack.enter_context(captured_choices(model))

        def seen() -> dict[str, Seen]:
            return {
                name: Seen(
                    [projections[layer] for layer in look.projections],
                    [states[layer] for layer in look.states],
                    routers if look.routers else (),
                    choices if look.choices else (),
                )
                for name, look in looks.items()
            }

        yield seen
