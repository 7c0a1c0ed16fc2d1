"""Compiles recorded launches for GPUs that need not be here, and reads off what they would use."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from wrinklefree.kernels.launch import Launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_BYTES = {
    "sm_80": 166912,
    "sm_90": 232448,
    "sm_100": 232448,
    "sm_120": 101376,
    "gfx942": 65536,
}
"""What a program may have at most (CUDA C++ Programming Guide, compute capabilities; CDNA3 ISA)."""
REGISTERS = {target: 512 if target.startswith("gfx") else 255 for target in TARGETS}
"""What a thread may have at most, by the same."""


class Resources(NamedTuple):
    """What a compiled kernel takes."""

    name: str
    registers: int
    """Of a thread."""
    shared_bytes: int
    """Of a program."""
    spilled_bytes: int
    """Of a thread, in memory because registers ran out."""


def key_of(launch: Launch) -> str:
    """What Triton specializes on: dtypes, and whether an integer is 1 or a multiple of 16."""
    arguments = [
        argument.dtype
        if isinstance(argument, Tensor)
        else argument and (argument == 1, argument % 16 == 0)
        for argument in launch.arguments
    ]
    return f"{launch.kernel.__name__} {arguments} {launch.constants}"


def compile_launch(recorded: Launch, target: str) -> Resources:
    """What the kernel takes on a GPU of ``TARGETS``."""
    compiled = compiled_for(recorded, target)
    if TARGETS[target].backend == "hip":
        registers, spilled = _of_amdgcn(compiled.asm["amdgcn"])
    else:
        registers, spilled = _of_cubin(compiled.asm["cubin"])
    return Resources(recorded.kernel.__name__, registers, compiled.metadata.shared, spilled)


def compiled_for(recorded: Launch, target: str) -> Any:
    """Compile for a GPU of ``TARGETS``, in the very way in which a launch there would."""
    stand_in: Any = SimpleNamespace(
        get_current_device=lambda: target,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: TARGETS[target],
    )
    before = driver._active
    driver.set_active(stand_in)
    try:
        return recorded.kernel.warmup(*recorded.arguments, grid=recorded.grid, **recorded.constants)
    finally:
        driver._active = before


def _of_cubin(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", printed)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def _of_amdgcn(assembly: str) -> tuple[int, int]:
    # Scalar registers are spilled into lanes of vector registers, which is no memory.
    keys = r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)"
    found = {key: int(value) for key, value in re.findall(keys, assembly)}
    return found["vgpr_count"], found["private_segment_fixed_size"]
