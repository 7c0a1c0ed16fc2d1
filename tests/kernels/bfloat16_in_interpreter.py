"""Triton's interpreter with bfloat16 as devices have it.

It holds the 16 bits as integers: it multiplies matrices of those integers, and cuts a float32 off
where every device rounds it to the nearest.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def mend() -> None:
    """Change the interpreter, if kernels run in it."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        builder: Any = interpreter.InterpreterBuilder
        builder.create_dot = _dot
        builder.cast_impl = _rounding(builder.cast_impl)


def _widened(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle.data
    return (handle.data.astype(np.uint32) << 16).view(np.float32)


def _dot(_builder: Any, a: Any, b: Any, d: Any, _precision: Any, _inexact: Any) -> Any:
    product = np.matmul(_widened(a), _widened(b), dtype=d.data.dtype)
    return interpreter.TensorHandle(product + d.data, d.dtype.scalar)


def _rounding(cast: Any) -> Any:
    def to_nearest(builder: Any, source: Any, dst_type: Any) -> Any:
        if (source.dtype.scalar, dst_type.scalar) == (tl.float32, tl.bfloat16):
            bits = source.data.view(np.uint32)
            rounded = bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))
            kept = np.where(np.isnan(source.data), bits | np.uint32(1 << 22), rounded)
            return interpreter.TensorHandle((kept >> 16).astype(np.uint16), dst_type.scalar)
        return cast(builder, source, dst_type)

    return to_nearest
