"""How every Triton kernel is started, and what is compiled for it where there is no GPU.

A kernel's wrapper computes grid, block sizes and warps from its tensors and hands them to
``launch``. Called with tensors of the meta device it starts nothing, and ``recorded`` has what it
would have started: tests compile that for GPUs that are not here, so what they compile is what
would run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

FLOATS = torch.float32, torch.bfloat16, torch.float16
"""What kernels compute with: float64 is for references."""


def kernels_run_on(device: torch.device) -> bool:
    """Whether Triton kernels run on ``device``."""
    return device.type == "cuda" and find_spec("triton") is not None


def has_triton(tensor: Tensor, *dtypes: torch.dtype) -> bool:
    """Whether a Triton kernel can take ``tensor``, of these dtypes where any are named."""
    return (not dtypes or tensor.dtype in dtypes) and kernels_run_on(tensor.device)


class Launch(NamedTuple):
    """A kernel and what it is started with."""

    kernel: Any
    grid: tuple[Any, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    """Compile-time constants, and options such as ``num_warps``."""


_recording: ContextVar[list[Launch] | None] = ContextVar("recording", default=None)


def launch(kernel: Any, grid: tuple[Any, ...], *arguments: Any, **constants: Any) -> None:
    """Start ``kernel`` on ``grid``; with tensors of the meta device, only record it."""
    # A product fused with the sum that follows it would have digits that references round away.
    constants = {"enable_fp_fusion": False} | constants
    if any(isinstance(argument, Tensor) and argument.is_meta for argument in arguments):
        if (launches := _recording.get()) is not None:
            launches.append(Launch(kernel, grid, arguments, constants))
        return
    kernel[grid](*arguments, **constants)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """What wrappers launch inside the block on tensors of the meta device."""
    launches: list[Launch] = []
    token = _recording.set(launches)
    try:
        yield launches
    finally:
        _recording.reset(token)


def block_of(elements: int) -> int:
    """The least power of two that holds so many elements."""
    return 1 << (elements - 1).bit_length()


def warps_for(block: int) -> int:
    """Warps of a program that holds a block of so many elements: 4 to 16.

    Up to 32 elements a thread: with 128, a kernel that holds two blocks has its registers spilled.
    """
    return min(16, max(4, block // 1024))
