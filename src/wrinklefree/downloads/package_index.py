"""Where a package's archives lie: the folders and indexes that pip is configured for."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit
from urllib.request import url2pathname

import pypi_simple
import requests
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from wrinklefree.errors import UserError

_BACKOFF_SECONDS = 1.0
_FALSE = ("", "0", "false", "no", "off")


class PipSettings(NamedTuple):
    """What of pip's configuration bears on finding and downloading."""

    find_links: list[str]
    indexes: list[str]
    session: requests.Session
    timeout: float
    """Seconds without an answer."""


class Candidate(NamedTuple):
    """A file of a package."""

    name: str
    location: str
    """A URL, or a path on this machine."""
    version: str
    kind: str
    """``wheel``, ``sdist`` or one of the outdated kinds."""
    sha256: str | None
    """As its page states, if it does."""


def pip_settings() -> PipSettings:
    """pip's own view of its files and of ``PIP_*`` variables, as for ``pip download``.

    Raises UserError if there is no pip.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise UserError(
            f"`{' '.join(command[1:])}` failed, and pip's configuration says where packages are:"
            f" {result.stderr.strip()[-500:]}; install pip or correct its configuration"
        )
    options: dict[str, str] = {}
    values: dict[str, str] = {}
    for line in result.stdout.splitlines():
        key, _, value = line.partition("=")
        values[key] = str(ast.literal_eval(value))
    for section in ("global", "download", ":env:"):  # the later ones win
        prefix = section + "."
        options |= {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
    indexes = [options.get("index-url", pypi_simple.PYPI_SIMPLE_ENDPOINT)]
    indexes += options.get("extra-index-url", "").split()
    if options.get("no-index", "").lower() not in _FALSE:
        indexes = []
    timeout = float(options.get("timeout", options.get("default-timeout", "15")))
    return PipSettings(options.get("find-links", "").split(), indexes, _session(options), timeout)


def _session(options: dict[str, str]) -> requests.Session:
    session = requests.Session()
    # A busy or restarting index is asked again after 0, 2 and 4 seconds.
    busy = (500, 502, 503, 504)
    retry = Retry(total=3, backoff_factor=_BACKOFF_SECONDS, status_forcelist=busy)
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    if cert := options.get("cert"):
        session.verify = cert
    if client_cert := options.get("client-cert"):
        session.cert = client_cert
    if proxy := options.get("proxy"):
        session.proxies = {"http": proxy, "https": proxy}
        session.trust_env = False  # or a proxy of the environment would win
    return session


def find_archives(package: str, pip: PipSettings, problems: list[str]) -> Iterator[Candidate]:
    """All archives of ``package``, first of find-links, then of the indexes, as they are listed.

    A place that can't be read is passed over, with a line on why in ``problems``.
    """
    places = [(place, False) for place in pip.find_links]
    places += [(place, True) for place in pip.indexes]
    for place, is_index in places:
        try:
            if (path := local_path(place)) is not None:
                yield from _local_archives(package, path, is_index)
            elif is_index:
                client = pypi_simple.PyPISimple(place, session=pip.session)
                page = client.get_project_page(package, timeout=pip.timeout)
                yield from _listed(package, page)
            else:
                response = pip.session.get(place, timeout=pip.timeout)
                response.raise_for_status()
                yield from _listed_in_html(package, response.content, response.url)
        except pypi_simple.NoSuchProjectError:
            problems.append(f"{without_password(place)}: no package {package}")
        except (OSError, pypi_simple.UnsupportedContentTypeError) as error:
            problems.append(f"{without_password(place)}: {error}")


def same_version(one: str, other: str) -> bool:
    """Whether two versions are equal as versions: 1.0 and 1.0.0 are."""
    try:
        return Version(one) == Version(other)
    except InvalidVersion:
        return one == other


def local_path(place: str) -> Path | None:
    """The path that a ``file:`` URL or a plain path names, None for other URLs."""
    parts = urlsplit(place)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if "://" in place else Path(place)


def without_password(place: str) -> str:
    """A URL without user and password, to be shown."""
    parts = urlsplit(place)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _local_archives(package: str, path: Path, is_index: bool) -> Iterator[Candidate]:
    if is_index:
        path = path / canonicalize_name(package) / "index.html"
        if not path.is_file():
            raise FileNotFoundError(f"no package {package}")
    if path.suffix in (".html", ".htm"):
        yield from _listed_in_html(package, path.read_bytes(), path.resolve().as_uri())
        return
    if not path.exists():
        raise FileNotFoundError("no such file or folder")
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        try:
            project, version, kind = pypi_simple.parse_filename(file.name, package)
        except pypi_simple.UnparsableFilenameError:
            continue
        if canonicalize_name(project) == canonicalize_name(package):
            yield Candidate(file.name, str(file), version, kind, None)


def _listed_in_html(package: str, html: bytes, url: str) -> Iterator[Candidate]:
    yield from _listed(package, pypi_simple.ProjectPage.from_html(package, html, base_url=url))


def _listed(package: str, page: pypi_simple.ProjectPage) -> Iterator[Candidate]:
    for file in page.packages:
        if file.project and canonicalize_name(file.project) == canonicalize_name(package):
            sha256 = file.digests.get("sha256")
            yield Candidate(
                file.filename, file.url, file.version or "", file.package_type or "", sha256
            )
