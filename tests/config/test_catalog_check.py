from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from wrinklefree.config.catalog import read_catalog

PROJECT = Path(__file__).parents[2]
CATALOG = read_catalog(PROJECT / "catalog.yaml")
CARDS = {
    f"/datasets/{entry.dataset}/resolve/{entry.revision or 'main'}/README.md"
    for entry in CATALOG.datasets.values()
}


class Hub(BaseHTTPRequestHandler):
    """Has the pinned commits, and for some data sets another answer."""

    answers: dict[str, tuple[int, str]] = {}
    """Status and error code by a part of the path."""

    def do_HEAD(self) -> None:
        found = [answer for part, answer in self.answers.items() if part in self.path]
        known = self.path in CARDS or self.path.endswith("/auth-check")
        status, code = found[0] if found else (200, "") if known else (404, "RevisionNotFound")
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if status == 200 and code != "no hub":
            self.send_header("X-Repo-Commit", self.path.split("/")[-2])
        if status != 200:
            self.send_header("X-Error-Code", code)
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Hub, "answers", {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def check(endpoint: str, *names: str, **variables: str) -> tuple[int, list[str], str]:
    environment = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    result = subprocess.run(
        [sys.executable, "-m", "wrinklefree.cli", "catalog", "check", *names],
        cwd=PROJECT,
        env=os.environ | environment | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return result.returncode, result.stdout.splitlines(), result.stderr


def test_every_data_set_has_a_line_that_says_whether_and_why_not(hub: str) -> None:
    Hub.answers = {
        "SlimPajama-627B": (401, "RepoNotFound"),
        "dclm-edu": (404, "RevisionNotFound"),
        "starcoderdata/auth-check": (403, "GatedRepo"),
        "fineweb/": (503, ""),
        "fineweb-edu": (404, "EntryNotFound"),
        "open-web-math": (200, "no hub"),
    }
    status, lines, errors = check(hub)
    assert (status, errors) == (0, "")
    said = {name: text for name, _, text in (line.partition(" ") for line in lines)}
    assert list(said) == list(CATALOG.datasets)
    different = {
        "slimpajama": "not reachable: the hub has no cerebras/SlimPajama-627B, or only for",
        "dclm_edu": f"not reachable: the hub has no commit {CATALOG.datasets['dclm_edu'].revision}",
        "starcoder": "not reachable: gated; accept the terms on https://huggingface.co/datasets/bi",
        "fineweb": "not reachable: the hub answered 503",
        "openwebmath": "not reachable: what answered is no hub",
        "nemotron_cc_hq": "reachable; no commit is pinned",
        "megamath_code": "reachable; cannot be streamed",
        "github_code": "reachable; cannot be streamed",
    }
    for name, text in said.items():
        if name in different:
            assert text.strip().startswith(different[name])
        else:
            assert text.strip() == "reachable"


def test_the_status_is_for_the_names_that_were_asked_for(hub: str) -> None:
    Hub.answers = {"dclm-baseline": (404, "RevisionNotFound")}
    status, lines, _ = check(hub, "proposed", "fineweb")
    assert status == 1
    names = [line.split()[0] for line in lines]
    assert names == [*CATALOG.recipes["proposed"].weights, "fineweb"]
    assert check(hub, "current")[0] == 0
    status, lines, error = check(hub, "newz")
    assert (status, lines) == (2, [])
    assert error.startswith("error: the catalog has no newz; it has dclm_baseline")


def test_without_a_network_one_sentence_is_said() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        endpoint = f"http://127.0.0.1:{server.server_port}"
    status, (line,), errors = check(endpoint)
    assert (status, errors) == (0, "")
    assert line.startswith(f"{endpoint} gave no answer about any data set: ConnectError: ")
    assert line.endswith("or name a mirror in HF_ENDPOINT")
    status, (line,), _ = check(endpoint, "fineweb", HF_HUB_OFFLINE="1")
    assert status == 1
    assert "OfflineModeIsEnabled: " in line
