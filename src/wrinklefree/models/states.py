"""Reading the hidden states between decoder layers while a model runs.

Shapes: B rows, T tokens of a row, D hidden size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.models.layers import decoder_layers, hidden_of

_SMALLEST = 1e-12


def relative_error(wanted_BTD: Tensor, given_BTD: Tensor) -> Tensor:
    """Squared error of every token over the square of what was wanted, [B, T].

    It is relative to the token, so that the few with massive activations count as any other.
    """
    square_BT = wanted_BTD.square().sum(-1).clamp(min=_SMALLEST)
    return (given_BTD - wanted_BTD).square().sum(-1) / square_BT


@contextmanager
def captured_states(model: PreTrainedModel, layers: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """What leaves each of some decoder layers, [B, T, D], while the model runs inside the context.

    By layer, and there after the run; gradients flow through them. A layer that runs again after
    the context, as activation checkpointing makes it, is not read again.
    """
    states: dict[int, Tensor] = {}
    every = decoder_layers(model)
    with ExitStack() as stack:
        for index in set(layers):

            def keep(layer: nn.Module, arguments: Any, output: Any, index: int = index) -> None:
                states[index] = hidden_of(output)

            handle = every[index].register_forward_hook(keep)
            stack.callback(handle.remove)
        yield states
