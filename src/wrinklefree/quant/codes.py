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
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from wrinklefree.kernels.launch import FLOATS, has_triton
from wrinklefree.kernels.quantize_activation import quantize_activation
from wrinklefree.kernels.quantize_weights import FittedScale, quantize_weights
from wrinklefree.quant.packing import pack_ternary

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
        self._packed: tuple[Tensor, Tensor] | None = None
        self._fit: FittedScale | None = None
        _all.add(self)

    def __reduce__(self) -> tuple[type[WeightCodes], tuple[()]]:
        """Nothing is kept."""
        return WeightCodes, ()

    def of(
        self, weight: nn.Parameter, make: Callable[[], Codes], fit: FittedScale | None = None
    ) -> Codes:
        """What ``make`` gave, as long as ``weight`` is the tensor it was and holds what it held.

        Parameters
        ----------
        fit : the scale that ``make`` gives the weight, if that is one scale of these: the first
            layer that asks after an update then has the codes of all made at once, on CUDA.
        """
        if weight.is_inference():
            return make()
        self._fit = fit
        if (found := self._found(weight)) is None and fit and (stale := self._stale_too(weight)):
            _make_at_once(stale, fit)
            found = self._found(weight)
        if found is None:
            with torch.inference_mode(False), torch.no_grad():
                found = self._hold(weight, make())
        return found

    def forget(self) -> None:
        """Hold nothing, so that the memory of a weight that was moved away is free."""
        self._held = self._packed = None

    def packed(self, codes_ON: Tensor) -> Tensor:
        """Codes that ``of`` gave, four to a byte: made once for as long as they are held."""
        if self._packed is None or self._packed[0] is not codes_ON:
            self._packed = codes_ON, pack_ternary(codes_ON)
        return self._packed[1]

    def _found(self, weight: nn.Parameter) -> Codes | None:
        held = self._held
        if (
            held is not None
            and held.parameter is weight
            and held.version == weight._version
            and held.updates == (_Updates.value if weight.requires_grad else 0)
            and held.place == _place(weight)
        ):
            return held.codes
        return None

    def _hold(self, weight: nn.Parameter, codes: Codes) -> Codes:
        updates = _Updates.value if weight.requires_grad else 0
        storage, place = weight.untyped_storage(), _place(weight)
        self._packed = None
        self._held = _Weight(weight, storage, place, weight._version, updates, codes)
        return codes

    def _stale_too(self, weight: nn.Parameter) -> list[WeightCodes]:
        """This, and all others that an update made stale since they were read."""
        held = self._held
        if (
            not has_triton(weight, *FLOATS)
            or held is None
            or not weight.requires_grad
            or held.updates == _Updates.value
            or (dist.is_available() and dist.is_initialized())  # sharded weights are not here yet
        ):
            return []
        return [
            other
            for other in _all
            if (its := other._held)
            and (other._fit, its.updates) == (self._fit, held.updates)
            and its.parameter.requires_grad
            and its.parameter.is_contiguous()
            and (its.parameter.device, its.parameter.dtype) == (weight.device, weight.dtype)
        ]


_all: weakref.WeakSet[WeightCodes] = weakref.WeakSet()


def _make_at_once(stale: list[WeightCodes], fit: FittedScale) -> None:
    weights = [codes._held.parameter for codes in stale if codes._held]
    for codes in stale:
        codes._held = codes._packed = None  # old codes and new ones do not lie side by side
    with torch.inference_mode(False), torch.no_grad():
        made = quantize_weights([weight.detach() for weight in weights], fit)
    for codes, weight, its_codes in zip(stale, weights, made, strict=True):
        codes._hold(weight, its_codes)


def _place(weight: Tensor) -> tuple[Any, ...]:
    storage = weight.untyped_storage()
    return storage._cdata, weight.storage_offset(), weight.shape, weight.dtype
