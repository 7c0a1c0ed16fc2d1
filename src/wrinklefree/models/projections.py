"""Queries, keys and values of chosen layers, read while a model runs.

Shapes: B rows, T tokens of a row, H attention heads, K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from wrinklefree.errors import UserError


@dataclass(frozen=True)
class Projections:
    """What one layer's attention is computed from; gradients flow through it."""

    query_BHTD: Tensor
    key_BKTD: Tensor
    value_BKTD: Tensor

    def rows(self, start: int, stop: int, *, batch: int) -> Projections:
        """Tokens ``start`` to ``stop`` of the first ``batch`` rows."""
        return Projections(
            self.query_BHTD[:batch, :, start:stop],
            self.key_BKTD[:batch, :, start:stop],
            self.value_BKTD[:batch, :, start:stop],
        )


class Capture:
    """Holds the projections of the last forward pass of one layer."""

    def __init__(self) -> None:
        self._projections: Projections | None = None

    @property
    def projections(self) -> Projections:
        """The captured projections; the model must have run inside the context."""
        assert self._projections is not None, "the model did not run while being captured"
        return self._projections

    def store(self, projections: Projections) -> None:
        """Keep these and drop the earlier ones."""
        self._projections = projections


@contextmanager
def capture_projections(model: PreTrainedModel, layer: int) -> Iterator[Capture]:
    """Read the queries, keys and values of a layer while the model runs inside the context.

    The attention function that the model's configuration names is wrapped for as long, in the table
    where transformers looks it up; other models and layers pass through it untouched.
    """
    attention = model.get_decoder().get_submodule(f"layers.{layer}.self_attn")
    name = model.config._attn_implementation
    if name not in ALL_ATTENTION_FUNCTIONS:
        raise UserError(
            f"relations can't be read from attention implementation {name}, which is no fused one;"
            " load the model with attn_implementation sdpa"
        )
    inner: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[name]
    capture = Capture()

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **rest: Any):
        if module is attention:
            capture.store(Projections(query, key, value))
        return inner(module, query, key, value, *args, **rest)

    ALL_ATTENTION_FUNCTIONS[name] = attend
    try:
        yield capture
    finally:
        ALL_ATTENTION_FUNCTIONS[name] = inner


@contextmanager
def captured(model: PreTrainedModel, layers: Mapping[str, int]) -> Iterator[Mapping[str, Capture]]:
    """Capture the projections of some layers, each under a name, while the model runs inside."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(capture_projections(model, layer))
            for name, layer in layers.items()
        }
