"""Which weights share a scale, and how large it is. See README.md of kernels/quantize_weights.

Shapes: O output features, N input features; V vectors of L weights that share a scale (V L = O N).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from wrinklefree.kernels.quantize_weights.blocks import absmean_scale, least_squares_scale
from wrinklefree.quant.settings import QuantizerSettings, Scale


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


_FITS: dict[Scale, Callable[[Tensor], Tensor]] = {
    "absmean": absmean_scale,
    "least_squares": least_squares_scale,
    "learned": least_squares_scale,
}
