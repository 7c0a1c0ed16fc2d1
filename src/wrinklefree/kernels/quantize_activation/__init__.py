"""Int8 codes of activations: Triton on CUDA, plain torch elsewhere."""

from __future__ import annotations

from torch import Tensor

from wrinklefree.kernels.launch import FLOATS, has_triton
from wrinklefree.kernels.quantize_activation import reference


def quantize_activation(activation_MN: Tensor) -> tuple[Tensor, Tensor]:
    """Int8 codes and one scale per token.

    Parameters
    ----------
    activation_MN : float, shape [..., N]; a token is a vector of the last dimension.

    Returns
    -------
    codes_MN : int8, shape [..., N]; the value is ``codes / scale``.
    scale_M1 : float32 (float64 for float64 input), shape [..., 1], ``127 / max(absmax, 1e-5)``;
        NaN where the token has a NaN.
    """
    if has_triton(activation_MN, *FLOATS):
        from wrinklefree.kernels.quantize_activation import triton

        return triton.quantize_activation(activation_MN)
    return reference.quantize_activation(activation_MN)
