"""What this machine multiplies faster than float32: measured once, then read from a file.

The file is ``wrinklefree/products.json`` in the user's cache folder (``XDG_CACHE_HOME``), with an
entry for each kind of machine. Delete it to measure again.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from wrinklefree.kernels.launch import has_triton
from wrinklefree.kernels.ternary_matmul import ternary_matmul

Kind = Literal["int8", "bfloat16", "triton"]
Precision = Literal["fp32", "bfloat16"]
"""What products of floats are computed in."""

int8_product = torch.ops.aten._int_mm.default
"""int8 [M, N] and [N, O] to their product in int32: ``torch._int_mm``."""

_LEAST_GAIN = 1.2
"""How many times faster a product must be: conversions eat what is gained by less."""
_SHAPES = {"cpu": (512, 512, 512), "cuda": (4096, 2560, 2560)}
"""Tokens, inputs and outputs; smaller ones would leave a GPU idle."""
_REPEATS = 5


def multiplies_faster(kind: Kind, device_type: str) -> bool:
    """Whether products of int8 (with sums in int32), of bfloat16, or of int8 in our Triton kernel
    beat those of float32 here.

    No instruction set says so: ``torch._int_mm`` without VNNI is a slow loop, and bfloat16 without
    AVX512-BF16 is emulated.
    """
    # Tensors on ``meta`` have no values, so that nothing there can be measured.
    return device_type != "meta" and gains(device_type)[kind] >= _LEAST_GAIN


def chosen_precision(wanted: Literal["auto"] | Precision, device_type: str) -> Precision:
    """What ``wanted`` is here: ``auto`` is bfloat16 where it is multiplied faster."""
    if wanted == "auto":
        return "bfloat16" if multiplies_faster("bfloat16", device_type) else "fp32"
    return wanted


def cache_file() -> Path:
    """Where measurements are kept; a place that can't be, for a user without a home."""
    try:
        folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        folder = os.devnull
    return Path(folder) / "wrinklefree" / "products.json"


@functools.cache
def gains(device_type: str) -> dict[Kind, float]:
    """Rates over that of float32, of this machine's entry or measured and entered.

    Processes that train one model together put in what they agree on.
    """
    machine, file = _machine(device_type), cache_file()
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {kind: float(found[machine][kind]) for kind in get_args(Kind)}
    except (OSError, ValueError, KeyError, TypeError):
        rates = measure(device_type)
    # Where it can't be written it is measured in every process, which costs some hundredths of a
    # second. Processes that start together may each measure; the last one's entry stays.
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            entries = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            entries = {}
        entries = (entries if isinstance(entries, dict) else {}) | {machine: rates}
        partial = file.with_name(f"{file.name}.{os.getpid()}")
        partial.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        partial.replace(file)
    return rates


def measure(device_type: str) -> dict[Kind, float]:
    """How many times the rate of float32 each kind has; 0 where it has no product or a wrong one.

    ``triton`` is timed with the scales that it multiplies by, the others without.
    The products take turns, so that a slow spell of the machine hits all, and the best time counts.
    """
    rows, inputs, outputs = _SHAPES.get(device_type, _SHAPES["cpu"])
    generator = torch.Generator().manual_seed(0)
    codes, weight = (
        torch.randint(-most, most + 1, (size, inputs), generator=generator, dtype=torch.int8)
        for size, most in ((rows, 127), (outputs, 1))
    )
    codes, weight = codes.to(device_type), weight.to(device_type)
    one = torch.ones((), device=device_type)
    truth = codes.double() @ weight.double().T
    with torch.autocast(device_type, enabled=False):
        calls: dict[str, Callable[[], Tensor]] = {"float32": _product(torch.float32, codes, weight)}
        asked: dict[Kind, Callable[[], Tensor]] = {
            "int8": lambda: int8_product(codes, weight.T),
            "bfloat16": _product(torch.bfloat16, codes, weight),
        }
        if has_triton(codes):
            asked["triton"] = lambda: ternary_matmul(codes, one.expand(rows, 1), weight, one)
        for kind, call in asked.items():
            with contextlib.suppress(RuntimeError, NotImplementedError):
                error = (call().double() - truth).abs().max().item()
                if error <= (2**-8 * truth.abs().max().item() if kind == "bfloat16" else 0):
                    calls[kind] = call
        best = dict.fromkeys(calls, float("inf"))
        for _ in range(_REPEATS):
            for kind, call in calls.items():
                started = time.perf_counter()
                call()
                if device_type == "cuda":
                    torch.cuda.synchronize()
                best[kind] = min(best[kind], time.perf_counter() - started)
    return {
        kind: round(best["float32"] / best[kind], 4) if kind in best else 0.0
        for kind in get_args(Kind)
    }


def _product(dtype: torch.dtype, codes: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    left, right = codes.to(dtype), weight.to(dtype).T
    return lambda: left @ right


def _machine(device_type: str) -> str:
    if device_type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        has = sorted(name for name, value in torch.cpu.get_capabilities().items() if value is True)
        name = " ".join([platform.machine(), *has])
    return f"torch {torch.__version__}, {device_type}: {name}"
