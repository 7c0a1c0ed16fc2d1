"""Ternary codes in the blocks of GGUF, exactly: what is written is what was trained.

llama.cpp's own quantizer would derive codes from floats; here a block is made of the codes. Every
block has a scale in float16, to which the one of the matrix is rounded (by 5e-4 of it at most).

Shapes: O rows (outputs), N inputs, K weights of a block.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize

from wrinklefree.models.exportable import I2_S_BLOCK


class BlockType(IntEnum):
    """llama.cpp's numbers of types. The package gguf (0.19) does not know Q2_0."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q8_0 = 8
    TQ1_0 = 34
    TQ2_0 = 35
    I2_S = 36  # of bitnet.cpp; llama.cpp has none of this number
    Q2_0 = 42


ROW_MULTIPLES = {
    BlockType.TQ2_0: 256,
    BlockType.TQ1_0: 256,
    BlockType.Q2_0: 64,
    BlockType.Q4_0: 32,
}
"""Weights of a block; a row is a whole number of them."""
_HALF = 16


def block_type(inputs: int, wanted: BlockType) -> BlockType:
    """``wanted`` where it holds rows of ``inputs`` weights, else Q4_0."""
    return wanted if inputs % ROW_MULTIPLES[wanted] == 0 else BlockType.Q4_0


def pack_blocks(codes_ON: np.ndarray, scale: float, kind: BlockType) -> np.ndarray:
    """Bytes of the rows, uint8 [O, bytes of a row].

    Parameters
    ----------
    codes_ON : -1, 0 or 1.

    Raises
    ------
    ValueError : a row is no whole number of blocks.
    """
    if codes_ON.shape[1] % ROW_MULTIPLES[kind]:
        raise ValueError(f"rows of {codes_ON.shape[1]}: no multiple of {ROW_MULTIPLES[kind]}")
    if kind == BlockType.Q4_0:
        # Codes + 8, those of both halves of a block in one byte.
        first, second = (codes_ON + 8).astype(np.uint8).reshape(-1, 2, _HALF).swapaxes(0, 1)
        return _behind_scales(scale, first | second << 4, len(codes_ON))
    if kind == BlockType.Q2_0:
        # Codes + 1, four neighbours in one byte, the first in its lowest bits.
        a, b, c, d = (codes_ON + 1).astype(np.uint8).reshape(-1, 4).T
        packed_K = (a | b << 2 | c << 4 | d << 6).reshape(-1, ROW_MULTIPLES[kind] // 4)
        return _behind_scales(scale, packed_K, len(codes_ON))
    # Of floats that are a scale times a code, the other two take the largest as scale.
    return rounded(codes_ON.astype(np.float32) * np.float32(scale), kind)


def pack_i2_s(codes_ON: np.ndarray, scale: float) -> np.ndarray:
    """Bytes of a whole matrix, uint8; see ``i2_s``. N is a multiple of ``I2_S_BLOCK``."""
    # A quarter of a block in each place of its bytes, the first in the highest bits.
    parts = (codes_ON + 1).astype(np.uint8).reshape(-1, 4, I2_S_BLOCK // 4)
    a, b, c, d = parts.swapaxes(0, 1)
    packed = (a << 6 | b << 4 | c << 2 | d).ravel()
    return np.concatenate([packed, np.array([scale, *[0] * 7], np.float32).view(np.uint8)])


def rounded(values: np.ndarray, kind: BlockType) -> np.ndarray:
    """float32 ``values`` as this type holds them, by gguf's own quantizer."""
    return values if kind == BlockType.F32 else quantize(values, GGMLQuantizationType(kind))


def _behind_scales(scale: float, packed_K: np.ndarray, rows: int) -> np.ndarray:
    scales = np.full((len(packed_K), 1), scale, dtype=np.float16).view(np.uint8)
    return np.concatenate([scales, packed_K], axis=1).reshape(rows, -1)
