"""A model on a GPU goes through Triton kernels, and gives what it gives on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compare_models_with_triton.py")


def test_models_give_with_kernels_what_they_give_without() -> None:
    pytest.importorskip("triton")
    # The interpreter is chosen when triton is imported, hence the process of its own.
    result = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "TRITON_INTERPRET": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    compared: dict[str, dict[str, bool]] = json.loads(result.stdout)
    assert len(compared) == 9 and all(compared.values())
    wrong = [f"{of}: {case}" for of, cases in compared.items() for case in cases if not cases[case]]
    assert wrong == []
