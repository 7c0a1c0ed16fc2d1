"""Runs a GPU's benchmark at small sizes in a process of its own, in Triton's interpreter on a CPU.

Each call is checked as on a GPU and made once instead of being timed. Arguments: the benchmark's
name, and constants of it to change, as JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from bfloat16_in_interpreter import mend
from torch.overrides import TorchFunctionMode

from wrinklefree.kernels import launch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
timing: Any = importlib.import_module("_timing")


class OnCpu(TorchFunctionMode):
    """Tensors that are asked for on a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def make_once(title: str, calls: Mapping[str, Callable[[], object]], *baselines: str) -> None:
    for call in calls.values():
        call()
    assert set(baselines) <= set(calls)
    print(f"timed: {title}: {', '.join(calls)}")


if __name__ == "__main__":
    mend()
    timing.time_on_gpu = make_once
    torch.compile = lambda function: function
    benchmark = importlib.import_module(sys.argv[1])
    for name, value in json.loads(sys.argv[2]).items():
        assert hasattr(benchmark, name), name
        setattr(benchmark, name, value)
    launch.kernels_run_on = lambda device: True
    torch.cuda.is_available = lambda: True
    with OnCpu():
        benchmark.main()
