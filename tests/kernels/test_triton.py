from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("compare_with_triton.py")


@pytest.mark.parametrize("operation", ["quantize_weight", "quantize_activation"])
def test_triton_kernel_gives_the_codes_and_scales_of_the_reference(operation: str) -> None:
    pytest.importorskip("triton")
    # The interpreter is chosen when triton is imported, hence the process of its own.
    interpret = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    result = subprocess.run(
        [sys.executable, str(SCRIPT), operation],
        env={**os.environ, **interpret, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    cases = json.loads(result.stdout)
    assert len(cases) >= 8
    assert [case for case, same in cases.items() if not same] == []
