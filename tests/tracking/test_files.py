from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from wrinklefree.tracking.files import sha256_of_file, sha256_of_json, write_atomically


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
