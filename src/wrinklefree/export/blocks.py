"""Ternary codes in the blocks of GGUF, exactly: what is written is what was trained.

llama.cpp's own quantizer would derive codes from floats; here a block is made of the codes. Every
block has a scale in float16, to which the one of the matrix is rounded (by 5e-4 of it at most).

Shapes: O rows (outputs), N inputs, K weights of a block.
"""

from __future__ import annotations

import numpy as np
from gguf.constants import GGMLQuantizationType as BlockType
from gguf.quants import quantize

ROW_MULTIPLES = {BlockType.TQ2_0: 256, BlockType.TQ1_0: 256, BlockType.Q4_0: 32}
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
        return _q4_0(codes_ON, scale)
    # Of floats that are a scale times a code, these two take the largest as scale.
    return quantize(codes_ON.astype(np.float32) * np.float32(scale), kind)


def _q4_0(codes_ON: np.ndarray, scale: float) -> np.ndarray:
    """18 bytes for 32 weights: the scale, then codes + 8, those of both halves in one byte."""
    blocks_K = (codes_ON + 8).astype(np.uint8).reshape(-1, 2, _HALF)
    scales = np.full((len(blocks_K), 1), scale, dtype=np.float16).view(np.uint8)
    nibbles = blocks_K[:, 0] | blocks_K[:, 1] << 4
    return np.concatenate([scales, nibbles], axis=1).reshape(len(codes_ON), -1)
