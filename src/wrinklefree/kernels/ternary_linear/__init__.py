"""The linear layer over int8 activations and ternary weights, in exact integers.

One operation of ``torch.library``, so that a compiled graph has it as one node and rounds as this
does. See README.md. Shapes: M tokens (any leading dimensions), N inputs, O outputs.
"""

from __future__ import annotations

import contextlib
from typing import Any, cast

import torch
from torch import Tensor

from wrinklefree.kernels.ternary_linear.products import (
    BackEnd,
    chosen_back_end,
    integer_product,
    record,
)
from wrinklefree.kernels.ternary_matmul import ternary_matmul


def ternary_linear(
    activation_MN: Tensor,
    weight_ON: Tensor,
    activation_codes: tuple[Tensor, Tensor | None],
    weight_codes: tuple[Tensor, Tensor],
    *,
    dtype: torch.dtype | None = None,
    back_end: BackEnd | None = None,
) -> Tensor:
    """``s_w / s_x (X T)``, [..., O], with straight-through gradients for activations and weight.

    What is saved for the backward pass are the codes and scales, no float of the activations' size.

    Parameters
    ----------
    activation_MN, weight_ON : what the codes are of. Their values are not read, gradients go there.
    activation_codes : int8 [..., N] and the scales [..., 1] by which these were multiplied; or,
        without gradients and where ``quantizes_inside``, the activation and None.
    weight_codes : int8 [O, N] and what a code of 1 stands for, a scalar or [O, 1].
    dtype : of the result, and the type that products of the backward pass run in; that of the
        activations where none is given.
    back_end : what multiplies, or else what the machine is fast at. Results do not depend on it.
    """
    arguments = (
        activation_MN,
        weight_ON,
        *activation_codes,
        *weight_codes,
        dtype or activation_MN.dtype,
        back_end or "",
    )
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return _operation(*arguments)
    return _forward(*arguments)  # a token that is generated has no time for the dispatcher


def _forward(
    activation_MN: Tensor,
    weight_ON: Tensor,
    codes_MN: Tensor,
    scale_M1: Tensor | None,
    weight_codes_ON: Tensor,
    weight_scale: Tensor,
    dtype: torch.dtype,
    back_end: str,
) -> Tensor:
    with _without_autocast(codes_MN.device.type):
        codes = codes_MN.reshape(-1, codes_MN.shape[-1])
        scale = None if scale_M1 is None else scale_M1.reshape(-1, 1)
        chosen = cast(BackEnd, back_end) or chosen_back_end(codes.device)
        if scale is None or (chosen == "triton" and scale.dtype == torch.float32):
            record("triton")
            output_MO = ternary_matmul(codes, scale, weight_codes_ON, weight_scale, dtype)
        else:
            sums_MO = integer_product(codes, weight_codes_ON, chosen)
            output_MO = _scaled_sums(sums_MO, scale, weight_scale, dtype)
    return output_MO.reshape(*codes_MN.shape[:-1], len(weight_codes_ON))


def _scaled_sums(
    sums_MO: Tensor, scale_M1: Tensor, weight_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    if weight_scale.ndim == 0:
        return _scaled(sums_MO, scale_M1.reciprocal().mul_(weight_scale), dtype)
    return (
        _scaled(sums_MO, scale_M1.reciprocal(), scale_M1.dtype).mul_(weight_scale[:, 0]).to(dtype)
    )


# Defined by hand: torch.library.custom_op imports the compiler at its first call, which takes
# seconds, and adds some 50 microseconds to each.
_NAME = "wrinklefree::ternary_linear"
torch.library.define(
    _NAME,
    "(Tensor activation, Tensor weight, Tensor codes, Tensor scale, Tensor weight_codes,"
    " Tensor weight_scale, ScalarType dtype, str back_end) -> Tensor",
)
torch.library.impl(_NAME, "default", _forward)
_operation = torch.ops.wrinklefree.ternary_linear.default


@torch.library.register_fake(_NAME)
def _(
    activation_MN: Tensor,
    weight_ON: Tensor,
    codes_MN: Tensor,
    scale_M1: Tensor,
    weight_codes_ON: Tensor,
    weight_scale: Tensor,
    dtype: torch.dtype,
    back_end: str,
) -> Tensor:
    return codes_MN.new_empty(*codes_MN.shape[:-1], len(weight_codes_ON), dtype=dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    activation_MN, weight_ON, *saved, _, _ = inputs
    ctx.save_for_backward(*saved)
    ctx.dtypes = activation_MN.dtype, weight_ON.dtype


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    codes_MN, scale_M1, weight_codes_ON, weight_scale = ctx.saved_tensors
    to_activation, to_weight = None, None
    gradient_MO, compute = gradient.reshape(-1, gradient.shape[-1]), gradient.dtype
    with _without_autocast(gradient.device.type):
        if ctx.needs_input_grad[0]:
            seen_ON = weight_codes_ON.to(compute)
            if weight_scale.ndim == 0:
                passed_MN = (gradient_MO @ seen_ON).mul_(weight_scale)
            else:
                passed_MN = (gradient_MO * weight_scale[:, 0]).to(compute) @ seen_ON
            to_activation = passed_MN.to(ctx.dtypes[0]).reshape(codes_MN.shape)
        if ctx.needs_input_grad[1]:
            inverse_M1 = scale_M1.reshape(-1, 1).reciprocal().to(compute)
            seen_MN = codes_MN.reshape(-1, codes_MN.shape[-1]).to(compute).mul_(inverse_M1)
            to_weight = (gradient_MO.T @ seen_MN).to(ctx.dtypes[1])
    return to_activation, to_weight, None, None, None, None, None, None


torch.library.register_autograd(_NAME, _backward, setup_context=_save)


def _scaled(integers_MN: Tensor, factor_M1: Tensor, dtype: torch.dtype) -> Tensor:
    """``integers * factor``, multiplied in the factor's type and rounded to ``dtype``."""
    # In place, since sums of floats are nobody else's: on a CPU fresh memory is most of the time.
    return integers_MN.to(factor_M1.dtype).mul_(factor_M1).to(dtype)


def _without_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    if not torch.is_autocast_enabled(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)
