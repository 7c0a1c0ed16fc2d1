"""Who multiplies int8 codes by ternary ones: back ends that give the same integers.

Shapes: M tokens, N inputs, O outputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from wrinklefree.errors import UserError
from wrinklefree.kernels.capabilities import gains, int8_product, multiplies_faster
from wrinklefree.kernels.launch import FLOATS, block_of, has_triton, kernels_run_on
from wrinklefree.kernels.packed_matmul.reference import CODES_PER_BYTE

BackEnd = Literal["int8", "float32", "triton"]

VARIABLE = "WRINKLEFREE_PRODUCTS"
"""Environment variable that names the back end, in place of what the machine is fast at."""
last_used: BackEnd | None = None
"""What multiplied last in this process, for its record."""
MOST_PACKED_TOKENS = 16
"""What one tile of tensor cores holds: more tokens would read the weight more than once."""
MOST_ROUNDED = 2**16
"""Values that a program makes codes of in the time of one launch more."""
MOST_INPUTS = (2**24 - 1) // 127
"""Up to here every partial sum is an integer that float32 holds."""


def chosen_back_end(device: torch.device) -> BackEnd:
    """What ternary products run in on this machine. Results do not depend on it.

    That is what was measured as the fastest (``kernels/capabilities.py``), or what is named.

    Raises
    ------
    UserError : the environment names another one than there are, or one that is not here.
    """
    if named := os.environ.get(VARIABLE):
        known = get_args(BackEnd)
        if named not in known or (named == "triton" and not kernels_run_on(device)):
            raise UserError(
                f"environment variable {VARIABLE} is {named!r}: expected {' or '.join(known)}"
                " (triton on CUDA only), or leave it unset for what this machine is fast at"
            )
        return cast(BackEnd, named)
    if multiplies_faster("triton", device.type):
        rates = gains(device.type)
        if rates["triton"] >= rates["int8"]:
            return "triton"
    return "int8" if multiplies_faster("int8", device.type) else "float32"


def quantizes_inside(activation_MN: Tensor) -> bool:
    """Whether the kernel that multiplies is to make codes of the activation too, to the same bits.

    It is for few tokens without gradients, of which no other layer needs the codes, where
    ``triton`` is the back end.
    """
    tokens, inputs = activation_MN.numel() // activation_MN.shape[-1], activation_MN.shape[-1]
    rows = 1 if tokens == 1 else max(16, block_of(tokens))  # that a program multiplies at least
    return (
        not (torch.compiler.is_compiling() or torch.is_grad_enabled())
        and has_triton(activation_MN, *FLOATS)
        and rows * inputs <= MOST_ROUNDED
        and chosen_back_end(activation_MN.device) == "triton"
    )


def reads_packed(codes: tuple[Tensor, Tensor | None], weight_codes: tuple[Tensor, Tensor]) -> bool:
    """Whether ``kernels/packed_matmul`` is to multiply, to the same bits.

    It is for few tokens without gradients, on CUDA, whose product of int8 refuses these.
    """
    (codes_MN, scale_M1), (weight_ON, weight_scale) = codes, weight_codes
    reads = (
        not (torch.compiler.is_compiling() or torch.is_grad_enabled())
        and has_triton(codes_MN)
        and 0 < codes_MN.numel() <= MOST_PACKED_TOKENS * codes_MN.shape[-1]
        and len(weight_ON) % CODES_PER_BYTE == 0
        and (scale_M1 is None or scale_M1.dtype == torch.float32)
        and weight_scale.dtype == torch.float32
        and os.environ.get(VARIABLE, "triton") == "triton"
    )
    if reads:
        record("triton")
    return reads


def record(back_end: BackEnd) -> None:
    """Note what multiplies."""
    global last_used
    last_used = back_end


def integer_product(codes_MN: Tensor, weight_ON: Tensor, back_end: BackEnd) -> Tensor:
    """The exact ``X T`` of int8 codes, [M, O], in int32 or in a float type that holds it.

    ``triton`` has no such product, for it scales as it multiplies: float32 takes its place.
    """
    multiplies: BackEnd = "float32" if back_end == "triton" else back_end
    record(multiplies)
    return PRODUCTS[multiplies](codes_MN, weight_ON)


def _int8(codes_MN: Tensor, weight_ON: Tensor) -> Tensor:
    tokens, inputs = codes_MN.shape
    if codes_MN.is_cuda and (tokens <= 16 or inputs % 8 or len(weight_ON) % 8):
        return _float32(codes_MN, weight_ON)  # shapes that CUDA's product refuses
    if tokens == 1:  # oneDNN packs what is on the right: longer than one token's product takes
        return int8_product(weight_ON, codes_MN.T).T
    return int8_product(codes_MN, weight_ON.T)


def _float32(codes_MN: Tensor, weight_ON: Tensor) -> Tensor:
    # TF32 would do as well: it holds every code, and sums are float32.
    if codes_MN.shape[1] <= MOST_INPUTS:
        return codes_MN.float() @ weight_ON.float().T
    return (codes_MN.double() @ weight_ON.double().T).to(torch.int32)


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"int8": _int8, "float32": _float32}
