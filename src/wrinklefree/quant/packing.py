"""Four ternary codes in a byte, in the layout of transformers' BitNet integration.

Bits ``2i`` and ``2i + 1`` of byte row ``r`` hold ``code[r + i * O / 4] + 1``.

Shapes: O output features (a multiple of 4), N input features.
"""

from __future__ import annotations

import torch
from torch import Tensor

CODES_PER_BYTE = 4


def pack_ternary(codes_ON: Tensor) -> Tensor:
    """Bytes, uint8 [O / 4, N], of codes in {-1, 0, 1}, int8 [O, N]. The input is left as it is.

    Raises
    ------
    ValueError : O is no multiple of 4, or a code is not ternary.
    """
    if codes_ON.ndim != 2 or codes_ON.shape[0] % CODES_PER_BYTE:
        raise ValueError(
            f"codes of shape {tuple(codes_ON.shape)}: expected [O, N] with O a multiple of 4"
        )
    if codes_ON.numel() and not -1 <= codes_ON.min() <= codes_ON.max() <= 1:
        raise ValueError("codes must be -1, 0 or 1")
    quarters = (codes_ON + 1).to(torch.uint8).chunk(CODES_PER_BYTE)
    packed = torch.zeros_like(quarters[0])
    for index, quarter in enumerate(quarters):
        packed |= quarter << (2 * index)
    return packed


def unpack_ternary(packed: Tensor) -> Tensor:
    """Codes in {-1, 0, 1}, int8 [O, N], of bytes, uint8 [O / 4, N]: the inverse of packing."""
    quarters = [(packed >> (2 * index)) & 3 for index in range(CODES_PER_BYTE)]
    return torch.cat(quarters).to(torch.int8) - 1
