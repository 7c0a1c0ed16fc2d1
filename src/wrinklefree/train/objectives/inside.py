"""What terms of a loss look at inside of a model, in student and teacher alike.

Shapes: B rows, T tokens of a row, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.models.projections import Projections, captured
from wrinklefree.models.states import captured_states


@dataclass(frozen=True)
class Looks:
    """Where to look, by numbers of decoder layers."""

    projections: int | None = None
    """Queries, keys and values of this layer."""
    states: Sequence[int] = ()
    """What leaves these layers."""


@dataclass(frozen=True)
class Seen:
    """What is there; gradients flow through it."""

    projections: Projections | None
    states_BTD: Sequence[Tensor]

    def rows(self, start: int, stop: int, *, batch: int) -> Seen:
        """Tokens ``start`` to ``stop`` of the first ``batch`` rows."""
        projections = self.projections and self.projections.rows(start, stop, batch=batch)
        return Seen(projections, [state[:batch, start:stop] for state in self.states_BTD])


@contextmanager
def looking(
    model: PreTrainedModel, looks: Mapping[str, Looks]
) -> Iterator[Callable[[], dict[str, Seen]]]:
    """Look while the model runs inside the context; what is given tells, after the run."""
    layers = {n: look.projections for n, look in looks.items() if look.projections is not None}
    every = {layer for look in looks.values() for layer in look.states}
    with captured(model, layers) as captures, captured_states(model, every) as states:

        def seen() -> dict[str, Seen]:
            return {
                name: Seen(
                    captures[name].projections if name in captures else None,
                    [states[layer] for layer in look.states],
                )
                for name, look in looks.items()
            }

        yield seen
