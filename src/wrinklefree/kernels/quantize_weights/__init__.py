"""Ternary codes of all weights of a model at once: Triton on CUDA, plain torch elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from wrinklefree.kernels.launch import FLOATS, has_triton
from wrinklefree.kernels.quantize_weights import reference
from wrinklefree.kernels.quantize_weights.reference import FittedScale

__all__ = ["FittedScale", "quantize_weights"]


def quantize_weights(weights: Sequence[Tensor], scale: FittedScale) -> list[tuple[Tensor, Tensor]]:
    """Codes in {-1, 0, 1} (int8, in the weight's shape) and one scale (a scalar) of each weight.

    Rows or heads with scales of their own are weights of their own: ``weight.unbind()``.

    Raises
    ------
    ValueError : a weight is not contiguous, or is of another dtype or device than the first.
    """
    for index, weight in enumerate(weights):
        kind, expected = (weight.dtype, weight.device), (weights[0].dtype, weights[0].device)
        if kind != expected or not weight.is_contiguous():
            raise ValueError(
                f"weight {index} is {kind}, contiguous: {weight.is_contiguous()}; expected"
                f" contiguous weights of the kind of the first, {expected}"
            )
    if not weights:
        return []
    first = weights[0]
    if has_triton(first, *FLOATS):
        from wrinklefree.kernels.quantize_weights import triton

        return triton.quantize_weights(weights, scale)
    return reference.quantize_weights(weights, scale)
