from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wrinklefree.errors import UserError
from wrinklefree.tracking.locks import exclusive_lock

HOLDER = """
import sys, time
from pathlib import Path
from wrinklefree.tracking.locks import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "a.lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_held_lock_is_an_error_that_names_the_holder(
    tmp_path: Path, holder: subprocess.Popen[str]
):
    expected = rf"stage2 is running in another process \(pid {holder.pid}\)"
    with (
        pytest.raises(UserError, match=expected),
        exclusive_lock(tmp_path / "a.lock", busy="stage2 is running"),
    ):
        pass


def test_a_killed_holder_frees_the_lock(tmp_path: Path, holder: subprocess.Popen[str]):
    holder.kill()
    holder.wait()
    with exclusive_lock(tmp_path / "a.lock", busy="stage2 is running"):
        assert (tmp_path / "a.lock").read_text() == str(os.getpid())
