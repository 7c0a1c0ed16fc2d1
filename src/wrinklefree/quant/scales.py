"""Which weights share a scale, and how large it is. See README.md of kernels/quantize_weight.

Shapes: O output features, N input features; V vectors of L weights that share a scale (V L = O N).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wrinklefree.kernels.quantize_weight.reference import MINIMUM_SCALE
from wrinklefree.quant.settings import QuantizerSettings, Scale

ITERATIONS = 10


def count_vectors(
    out_features: int, in_features: int, quantizer: QuantizerSettings, head_size: int | None = None
) -> int:
    """How many scales a weight [O, N] has: ``weight.reshape(V, -1)`` are what shares one.

    Parameters
    ----------
    head_size : rows of an attention head; only granularity ``head`` needs it.

    Raises
    ------
    ValueError : the weight has no whole number of groups or heads.
    """
    if quantizer.granularity == "tensor":
        return 1
    if quantizer.granularity == "row":
        return out_features
    if quantizer.granularity == "group":
        groups, rest = divmod(in_features, quantizer.group_size)
        if rest:
            raise ValueError(
                f"{in_features} inputs are no multiple of quantizer.group_size"
                f" {quantizer.group_size}; use a smaller one or another granularity"
            )
        return out_features * groups
    if not head_size or out_features % head_size:
        raise ValueError(f"{out_features} outputs are no whole number of heads of {head_size}")
    return out_features // head_size


def fitted_scale(weight_VL: Tensor, scale: Scale) -> Tensor:
    """What a code of 1 stands for in every vector, [V, 1] in float32 (float64 for float64).

    ``learned`` starts from ``least_squares``. Sums are in float64, so that their order (devices,
    threads) does not show.
    """
    return _FITS[scale](weight_VL)


def nearest_codes(weight_VL: Tensor, scale_V1: Tensor) -> Tensor:
    """``clamp(round(W / s), -1, 1)`` in the scale's dtype, half to even: whatever the scale."""
    return (weight_VL.to(scale_V1.dtype) / scale_V1).round_().clamp_(-1, 1)


def _absmean(weight_VL: Tensor) -> Tensor:
    mean_V1 = weight_VL.abs().mean(1, keepdim=True, dtype=torch.float64)
    return _rounded(mean_V1, weight_VL)


def _least_squares(weight_VL: Tensor) -> Tensor:
    """``s = <W, T> / <T, T>`` with the codes ``T`` of the last ``s``, 10 times from absmean."""
    magnitude_VL, scale_V1 = weight_VL.abs(), _absmean(weight_VL)
    # One buffer for all: fresh temporaries would be most of the time on a CPU.
    chosen_VL = torch.empty_like(magnitude_VL)
    for _ in range(ITERATIONS):
        torch.gt(magnitude_VL, scale_V1 / 2, out=chosen_VL)
        count_V1 = chosen_VL.sum(1, keepdim=True, dtype=torch.float64)
        total_V1 = chosen_VL.mul_(magnitude_VL).sum(1, keepdim=True, dtype=torch.float64)
        fitted_V1 = _rounded(total_V1 / count_V1, weight_VL)
        scale_V1 = torch.where(count_V1 > 0, fitted_V1, scale_V1)
    return scale_V1


def _rounded(scale_V1: Tensor, weight_VL: Tensor) -> Tensor:
    compute_dtype = torch.promote_types(weight_VL.dtype, torch.float32)
    return scale_V1.to(compute_dtype).clamp_(min=MINIMUM_SCALE)


_FITS: dict[Scale, Callable[[Tensor], Tensor]] = {
    "absmean": _absmean,
    "least_squares": _least_squares,
    "learned": _least_squares,
}
