"""Codes that are made once: of an activation that several layers read, of a weight between updates.

Neither can be stale. An entry is used only for the very tensor that it was made of, and only while
torch's count of its in-place changes stands still. What that count does not see are writes through
``.data`` and the gathering of sharded parameters: nothing here does the first, and the second
follows a step of an optimizer, which makes the codes of all trainable weights anew.

Shapes: M tokens (any leading dimensions), N inputs, O outputs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from wrinklefree.kernels.quantize_activation import quantize_activation

Codes = tuple[Tensor, Tensor]
"""Int8 codes and scales."""


@dataclass(frozen=True)
class _Activation:
    tensor: weakref.ref[Tensor]
    version: int
    codes: Codes


_last: _Activation | None = None
"""Layers that read one tensor (queries, keys and values; gate and up) do so one after another."""


def activation_codes(activation_MN: Tensor) -> Codes:
    """Int8 codes, [..., N], and scales, [..., 1]; those of the last call where it had this tensor.

    Layers that get the same tensor so save the same codes for their backward passes.
    """
    global _last
    if torch.compiler.is_compiling():  # which finds the repeated call by itself
        return _quantize_activation(activation_MN.detach())
    if activation_MN.is_inference():  # its changes are not counted
        return quantize_activation(activation_MN)
    found, version = _last, activation_MN._version
    if found and found.tensor() is activation_MN and found.version == version:
        return found.codes
    with torch.inference_mode(False), torch.no_grad():  # a backward pass may come to need them
        codes = quantize_activation(activation_MN)
    _last = _Activation(weakref.ref(activation_MN, _forget), version, codes)
    return codes


def _forget(tensor: weakref.ref[Tensor]) -> None:
    global _last
    if _last and _last.tensor is tensor:
        _last = None


@torch.library.custom_op("wrinklefree::quantize_activation", mutates_args=())
def _quantize_activation(activation_MN: Tensor) -> tuple[Tensor, Tensor]:
    # One node of a compiled graph, so that its rounding is the kernel's and not the compiler's.
    return quantize_activation(activation_MN)


@_quantize_activation.register_fake
def _(activation_MN: Tensor) -> tuple[Tensor, Tensor]:
    scale_dtype = torch.promote_types(activation_MN.dtype, torch.float32)
    return (
        activation_MN.new_empty(activation_MN.shape, dtype=torch.int8),
        activation_MN.new_empty(*activation_MN.shape[:-1], 1, dtype=scale_dtype),
    )


@dataclass(frozen=True)
class _Weight:
    parameter: nn.Parameter
    storage: torch.UntypedStorage
    """Held, so that no other data comes to lie at its address."""
    place: tuple[Any, ...]
    version: int
    updates: int
    codes: Codes


class _Updates:
    """Counts the steps of all optimizers of the process."""

    value = 0


def _count(*_: object) -> None:
    _Updates.value += 1


register_optimizer_step_post_hook(_count)


class WeightCodes:
    """The codes of one weight. A copy of it, or what was pickled, begins without any."""

    def __init__(self) -> None:
        self._held: _Weight | None = None

    def __reduce__(self) -> tuple[type[WeightCodes], tuple[()]]:
        """Nothing is kept."""
        return WeightCodes, ()

    def of(self, weight: nn.Parameter, make: Callable[[], Codes]) -> Codes:
        """What ``make`` gave, as long as ``weight`` is the tensor it was and holds what it held."""
        if weight.is_inference():
            return make()
        updates = _Updates.value if weight.requires_grad else 0
        held, storage = self._held, weight.untyped_storage()
        place = (storage._cdata, weight.storage_offset(), weight.shape, weight.dtype)
        if (
            held is not None
            and held.parameter is weight
            and held.version == weight._version
            and held.updates == updates
            and held.place == place
        ):
            return held.codes
        with torch.inference_mode(False), torch.no_grad():
            codes = make()
        self._held = _Weight(weight, storage, place, weight._version, updates, codes)
        return codes
