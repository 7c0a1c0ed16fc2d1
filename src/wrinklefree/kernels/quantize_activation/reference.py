"""Absmax int8 codes per token in plain torch (arXiv 2402.17764). See README.md.

Shapes: M tokens (any leading dimensions), N features of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wrinklefree.kernels.in_cache import AT_ONCE, outgrows_cache

LARGEST_CODE = 127
MINIMUM_ABSMAX = 1e-5


def activation_scale(activation_MN: Tensor) -> Tensor:
    """``127 * (1 / max(absmax, 1e-5))`` of the last dimension, shape [..., 1].

    In float32, or in float64 for float64 input.
    """
    compute_dtype = torch.promote_types(activation_MN.dtype, torch.float32)
    absmax_M1 = activation_MN.abs().amax(dim=-1, keepdim=True).to(compute_dtype)
    # torch computes 127 / tensor this way, and so does every runtime built on it; written out
    # because a correctly rounded division differs from it in the last bit.
    return absmax_M1.clamp_(min=MINIMUM_ABSMAX).reciprocal_().mul_(LARGEST_CODE)


def quantize_activation(activation_MN: Tensor) -> tuple[Tensor, Tensor]:
    """``clamp(round(x * s), -128, 127)`` as int8 and ``s``; ties round to even."""
    if not outgrows_cache(activation_MN):
        return _quantize(activation_MN)
    tokens_MN = activation_MN.reshape(-1, activation_MN.shape[-1])
    blocks = map(_quantize, tokens_MN.split(max(1, AT_ONCE // tokens_MN.shape[-1])))
    codes, scales = zip(*blocks, strict=True)
    return (
        torch.cat(codes).view(activation_MN.shape),
        torch.cat(scales).view(*activation_MN.shape[:-1], 1),
    )


def _quantize(activation_MN: Tensor) -> tuple[Tensor, Tensor]:
    scale_M1 = activation_scale(activation_MN)
    codes_MN = (activation_MN.to(scale_M1.dtype) * scale_M1).round_().clamp_(-128, LARGEST_CODE)
    return codes_MN.to(torch.int8), scale_M1
