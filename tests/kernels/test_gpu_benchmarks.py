"""What is timed on a GPU runs, and is right, without one: nobody else calls it there for months."""

from __future__ import annotations

import json
from typing import Any

import pytest
from interpreted import output_of

SIZES: dict[str, dict[str, Any]] = {
    "ternary_kernels": {"MODELS": {"x": [32, 24]}, "TOKENS": 70, "PACKED": [[64, 32]], "FEW": [1]},
    "step_kernels": {
        "MODELS": {"x": [16, 30]}, "TOKENS": 70, "HEADS": 2, "SQUARE": [33, 33],
        "EXPERTS": [3, 8, 9],
    },
    "vocabulary": {"MODELS": {"x": [16, 301]}, "TOKENS": 70},
}  # fmt: skip


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", SIZES)
def test_a_benchmark_of_a_gpu_finds_its_results_right_in_the_interpreter(name: str) -> None:
    said = output_of("run_gpu_benchmark.py", name, json.dumps(SIZES[name]), on_gpu=False)
    assert said.count("timed: ") >= 2
