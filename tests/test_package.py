"""What importing the package does to a process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
COMPUTE = """
import wrinklefree, hashlib, torch
torch.manual_seed(0)
x = torch.randn(700, 300, requires_grad=True)
(x @ x.T).softmax(-1).square().sum().backward()
print(hashlib.sha256(x.grad.numpy().tobytes()).hexdigest())
"""


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment = inherited | {"OMP_DISPLAY_ENV": "true", "OMP_NUM_THREADS": "2"} | variables
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment | {"PYTHONPATH": str(PROJECT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )


def wait_policies(process: subprocess.CompletedProcess[str]) -> set[str]:
    """What every OpenMP library of the process says that it does."""
    return set(re.findall(r"OMP_WAIT_POLICY *= *'(\w+)'", process.stderr.upper()))


@pytest.mark.parametrize("script", ["stage2", "evaluate"])
def test_threads_of_a_stage_wait_without_spinning(script: str):
    file = PROJECT / "workflow" / "scripts" / f"{script}.py"
    assert wait_policies(python("-P", str(file), "--help")) == {"PASSIVE"}


def test_a_users_choice_stays_and_changes_no_byte():
    active, passive = python("-c", COMPUTE, OMP_WAIT_POLICY="active"), python("-c", COMPUTE)
    assert (wait_policies(active), wait_policies(passive)) == ({"ACTIVE"}, {"PASSIVE"})
    assert active.stdout == passive.stdout != ""
