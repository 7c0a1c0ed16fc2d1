"""Ternary codes of a weight: Triton on CUDA, plain torch elsewhere."""

from __future__ import annotations

from torch import Tensor

from wrinklefree.kernels.launch import FLOATS, has_triton
from wrinklefree.kernels.quantize_weight import reference


def quantize_weight(weight_ON: Tensor) -> tuple[Tensor, Tensor]:
    """Codes in {-1, 0, 1} and the scale of a weight.

    Parameters
    ----------
    weight_ON : float, any shape.

    Returns
    -------
    codes_ON : int8, shape of ``weight_ON``.
    scale : float32 scalar (float64 for a float64 weight), ``max(mean|W|, 1e-5)``.
    """
    if has_triton(weight_ON, *FLOATS):
        from wrinklefree.kernels.quantize_weight import triton

        return triton.quantize_weight(weight_ON)
    return reference.quantize_weight(weight_ON)
