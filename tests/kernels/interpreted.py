"""Runs a script of this folder in a process of its own, for Triton reads its environment once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def output_of(script: str, *arguments: str, on_gpu: bool = torch.cuda.is_available()) -> str:
    """What it prints, in Triton's interpreter where it isn't on a GPU; skips without Triton."""
    pytest.importorskip("triton")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    if not on_gpu:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-2000:]
    return result.stdout
