from __future__ import annotations

import os
import subprocess
import sys

import pytest

from wrinklefree.train.allocator import VARIABLES

FAULTS = """
import resource
import torch
from wrinklefree.train.allocator import keep_freed_memory

def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def use(times: int) -> None:
    for _ in range(times):
        torch.ones(2**22)

keep_freed_memory()
use(20)
before = faults()
use(20)
print(faults() - before)
"""


def faults(**environment: str) -> float:
    """Pages that the system had to hand out for 20 times 16 MB."""
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, "-c", FAULTS]
    ran = subprocess.run(
        command, env=inherited | environment, capture_output=True, text=True, check=True
    )
    return float(ran.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="about glibc")
def test_memory_that_was_freed_is_handed_out_again_unless_the_user_has_chosen() -> None:
    kept, given_back = faults(), faults(MALLOC_MMAP_THRESHOLD_="131072")
    assert kept < given_back / 4
