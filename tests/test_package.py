"""What importing the package does to a process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
COMPUTE = """
import wrinklefree, hashlib, torch
torch.manual_seed(0)
x = torch.randn(700, 300, requires_grad=True)
(x @ x.T).softmax(-1).square().sum().backward()
print(hashlib.sha256(x.grad.numpy().tobytes()).hexdigest())
"""


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if key not in WAITING}
    environment = inherited | {"OMP_DISPLAY_ENV": "verbose", "OMP_NUM_THREADS": "2"} | variables
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment | {"PYTHONPATH": str(PROJECT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )


def waiting(process: subprocess.CompletedProcess[str]) -> set[tuple[str, str]]:
    """Policy and spins of every OpenMP library of the process, as it says itself."""
    said = process.stderr.upper()
    return {
        (policy, spins)
        for policy in re.findall(r"OMP_WAIT_POLICY *= *'(\w+)'", said)
        for spins in re.findall(r"GOMP_SPINCOUNT *= *'(\w+)'", said)
    }


@pytest.mark.parametrize("script", ["stage2", "evaluate"])
def test_threads_of_a_stage_spin_for_a_moment_and_sleep(script: str):
    file = PROJECT / "workflow" / "scripts" / f"{script}.py"
    assert waiting(python("-P", str(file), "--help")) == {("PASSIVE", "1000")}


def test_a_users_choice_stays_and_changes_no_byte():
    active, passive = python("-c", COMPUTE, OMP_WAIT_POLICY="active"), python("-c", COMPUTE)
    assert {policy for policy, _ in waiting(active)} == {"ACTIVE"}
    assert waiting(active).isdisjoint(waiting(passive))
    assert active.stdout == passive.stdout != ""
