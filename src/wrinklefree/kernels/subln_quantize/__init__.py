"""SubLN and int8 codes in one pass: Triton on CUDA, plain torch elsewhere."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from wrinklefree.kernels.launch import FLOATS, has_triton
from wrinklefree.kernels.subln_quantize import reference


def subln_quantize(
    activation_MN: Tensor, gain_N: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Int8 codes of ``gain * activation / RMS(activation)``, with straight-through gradients.

    Saved for the backward pass are the activation and one number per token.

    Parameters
    ----------
    activation_MN : float, shape [..., N].
    gain_N : float; the norm's weight.
    epsilon : what is added to the mean square.

    Returns
    -------
    normed_MN : [..., N], stands for the normed activation: its gradient is passed on to activation
        and gain. It has no values (one number, expanded); ``ternary_linear`` reads none.
    codes_MN : int8, shape [..., N].
    scale_M1 : float32 (float64 for float64 input), shape [..., 1]; the value is ``codes / scale``.
    """
    normed_MN, codes_MN, scale_M1 = _SublnQuantize.apply(activation_MN, gain_N, epsilon)  # pyright: ignore[reportGeneralTypeIssues]
    return normed_MN, codes_MN, scale_M1


class _SublnQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, activation_MN: Tensor, gain_N: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        implementation = _implementation(activation_MN)
        codes_MN, scale_M1, inverse_M1 = implementation.subln_quantize(
            activation_MN, gain_N, epsilon
        )
        ctx.save_for_backward(activation_MN, gain_N, inverse_M1)
        ctx.mark_non_differentiable(codes_MN, scale_M1)
        dtype = torch.promote_types(activation_MN.dtype, gain_N.dtype)
        stand_in = torch.zeros((), dtype=dtype, device=activation_MN.device)
        return stand_in.expand(activation_MN.shape), codes_MN, scale_M1

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        activation_MN, gain_N, inverse_M1 = ctx.saved_tensors
        implementation = _implementation(activation_MN)
        return *implementation.subln_gradients(
            gradients[0], activation_MN, gain_N, inverse_M1
        ), None


def _implementation(activation_MN: Tensor) -> ModuleType:
    if has_triton(activation_MN, *FLOATS):
        from wrinklefree.kernels.subln_quantize import triton

        return triton
    return reference
