from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("compare_with_triton.py")
OPERATIONS = (
    "quantize_activation",
    "quantize_weights",
    "subln_quantize",
    "ternary_matmul",
    "packed_matmul",
    "quantizing",
)


@pytest.fixture(scope="module")
def compared() -> dict[str, dict[str, bool]]:
    pytest.importorskip("triton")
    # The interpreter is chosen when triton is imported, hence the process of its own.
    interpret = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    result = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={**os.environ, **interpret, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_triton_kernel_gives_what_the_reference_gives(
    operation: str, compared: dict[str, dict[str, bool]]
) -> None:
    cases = compared[operation]
    assert len(cases) >= 8
    assert [case for case, same in cases.items() if not same] == []


def test_every_kernel_is_compared(compared: dict[str, dict[str, bool]]) -> None:
    assert set(compared) == set(OPERATIONS)
