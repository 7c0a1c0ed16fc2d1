from __future__ import annotations

import errno
import fcntl
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
        env=os.environ | {"SLURM_JOB_ID": "77"},
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_held_lock_is_an_error_that_names_the_holder(
    tmp_path: Path, holder: subprocess.Popen[str]
):
    expected = rf"stage2 is running in another process \(pid {holder.pid} on \S+, Slurm job 77\)"
    with (
        pytest.raises(UserError, match=expected),
        exclusive_lock(tmp_path / "a.lock", busy="stage2 is running"),
    ):
        pass


def test_a_killed_holder_frees_the_lock(tmp_path: Path, holder: subprocess.Popen[str]):
    holder.kill()
    holder.wait()
    with exclusive_lock(tmp_path / "a.lock", busy="stage2 is running"):
        assert (tmp_path / "a.lock").read_text().startswith(f"pid {os.getpid()} on ")


def test_a_file_system_without_locks_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(UserError, match=r"a\.lock: this file system has no locks"),
        exclusive_lock(tmp_path / "a.lock"),
    ):
        pass
