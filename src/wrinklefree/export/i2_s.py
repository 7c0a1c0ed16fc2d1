"""``I2_S`` of bitnet.cpp: a matrix as two bits a weight, and one scale in float32.

Its layout is that of x86, which microsoft/BitNet's converters write on any machine: of 128 weights
in a row, those at p, p + 32, p + 64 and p + 96 are bits 7-6, 5-4, 3-2 and 1-0 of byte p, each its
code + 1. Behind all blocks of a matrix stand 32 bytes, of which the first four are the scale.

Shapes: O rows (outputs), N inputs.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from wrinklefree.export.blocks import BlockType, rounded
from wrinklefree.export.gguf import gguf_name, tensors_of
from wrinklefree.models.exportable import I2_S_BLOCK

_ALIGNMENT = 32


def check_i2_s(path: Path, model: PreTrainedModel) -> None:
    """Read every tensor back, ternary ones weight by weight as the layout is defined.

    Neither llama.cpp nor the package gguf knows the type.

    Raises
    ------
    RuntimeError : a tensor is not ours, to the last bit.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        first = next(name for name, _, _ in tensors_of(model))
        written = _tensors(content, gguf_name(first))
        for name, values, scale in tensors_of(model):
            kind, start = written.pop(gguf_name(name))
            if scale is None:
                expected = rounded(values, BlockType(kind)).tobytes()
                same = content[start : start + len(expected)] == expected
            else:
                codes_ON, found = _decoded(content, start, values.shape)
                same = (kind, found) == (BlockType.I2_S, np.float32(scale))
                same &= np.array_equal(codes_ON, values)
            if not same:
                raise RuntimeError(f"{path}: {name} is not ours")
    if written:
        raise RuntimeError(f"{path}: {', '.join(sorted(written))} are no tensors of ours")


def _decoded(content: mmap.mmap, start: int, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Codes [O, N] and the scale of the matrix whose bytes begin at ``start``."""
    number = np.arange(math.prod(shape))
    raw = np.frombuffer(content[start : start + len(number) // 4 + 4], np.uint8)
    block, place = np.divmod(number, I2_S_BLOCK)
    group, byte = np.divmod(place, I2_S_BLOCK // 4)
    fields = raw[block * (I2_S_BLOCK // 4) + byte] >> (6 - 2 * group) & 3
    return fields.reshape(shape).astype(np.int8) - 1, raw[-4:].view(np.float32)[0]


def _tensors(content: mmap.mmap, first: str) -> dict[str, tuple[int, int]]:
    """Number of the type, and where the bytes begin, of every tensor; ``first`` is the first."""
    found = {}
    (count,) = struct.unpack_from("<Q", content, 8)
    place = content.find(struct.pack("<Q", len(first)) + first.encode())
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", content, place)
        name = content[place + 8 : place + 8 + length].decode()
        (dimensions,) = struct.unpack_from("<I", content, place + 8 + length)
        place += 12 + length + 8 * dimensions
        found[name] = struct.unpack_from("<IQ", content, place)
        place += 12
    start = -(-place // _ALIGNMENT) * _ALIGNMENT
    return {name: (kind, start + offset) for name, (kind, offset) in found.items()}
