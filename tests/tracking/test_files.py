from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from wrinklefree.tracking.files import (
    is_disk_full,
    sha256_of_file,
    sha256_of_json,
    write_atomically,
)


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path):
    data = bytes(range(256)) * 9001
    (tmp_path / "a").write_bytes(data)
    assert sha256_of_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_the_digest_of_json_ignores_the_order_of_keys_only():
    assert sha256_of_json({"a": 1, "b": [1, 2]}) == sha256_of_json({"b": [1, 2], "a": 1})
    assert sha256_of_json({"a": [2, 1]}) != sha256_of_json({"a": [1, 2]})


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "a"
    write_atomically(file, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


WRITERS = """
import resource, signal, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from wrinklefree.tracking.files import is_disk_full
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
tensors = {"a": torch.zeros(3000)}

def torch_writer(path):
    with path.open("wb") as file:
        torch.save(tensors, file)

def plain_writer(path):
    path.write_bytes(bytes(3000))

writers = [torch_writer, plain_writer, lambda path: save_file(tensors, path)]
for number, writer in enumerate(writers):
    try:
        writer(Path(sys.argv[1]) / str(number))
    except Exception as error:
        print(is_disk_full(error))
"""


def test_a_full_disk_is_recognised_in_the_errors_of_every_writer(tmp_path: Path):
    command = [sys.executable, "-c", WRITERS, str(tmp_path)]
    assert subprocess.check_output(command, text=True).split() == ["True"] * 3


@pytest.mark.parametrize("error", [OSError(13, "Permission denied"), ValueError("os error 13")])
def test_other_errors_are_not_taken_for_a_full_disk(error: Exception):
    assert not is_disk_full(error)
