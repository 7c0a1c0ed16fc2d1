"""A step of an optimizer's eight-bit running average: Triton on CUDA, plain torch elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from wrinklefree.kernels.launch import has_triton
from wrinklefree.kernels.momentum_8bit import reference
from wrinklefree.kernels.momentum_8bit.reference import Map


def move_average(
    codes: Tensor,
    largest_K: Tensor,
    entries: Tensor,
    rate: float,
    kind: Map,
    *,
    nesterov: bool = False,
    squared: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Move the average by ``rate`` of its way to ``entries``, and round it to codes again.

    Parameters
    ----------
    codes, largest_K : the average, see :func:`~.reference.quantize_blocks`; moved in place.
    entries : float, in the shape of ``codes``.
    rate : 1 - momentum.
    nesterov : return what a second step towards the same entries would give.
    squared : average the squares of the entries.

    Returns
    -------
    The new average before it is rounded to codes, in ``dtype``, in the shape of ``codes``.
    A block with a NaN has scale NaN.
    """
    step = reference.move_average
    if has_triton(entries):
        from wrinklefree.kernels.momentum_8bit import triton

        step = triton.move_average
    return step(
        codes, largest_K, entries, rate, kind, nesterov=nesterov, squared=squared, dtype=dtype
    )
