"""A real run of the tiny preset, shared by the tests that look at it."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from workspace import (
    SNAKEMAKE,
    TARGETS,
    copy_downloads,
    copy_project,
    copy_run,
    forked_stages,
    run,
)


@pytest.fixture(scope="session")
def forked() -> Iterator[dict[str, str]]:
    """The environment in which a stage takes no time to start."""
    with forked_stages() as environment:
        yield environment


@pytest.fixture(scope="session")
def completed(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A project in which everything has run on the tiny preset, from real packages.

    The first worker that needs it makes it, the others wait for it.
    """
    root = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        root = root.parent
    folder, done = root / "completed", root / "completed.done"
    with (root / "completed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.is_file():
            folder.mkdir()
            copy_project(folder)
            copy_downloads(folder)
            run(folder, "wrinklefree", "preset", "tiny")
            forked = request.getfixturevalue("forked")
            run(folder, *SNAKEMAKE, *TARGETS, environment=forked)
            done.touch()
    return folder


@pytest.fixture
def project(completed: Path, tmp_path: Path) -> Path:
    """A copy of the completed project for one test to change."""
    folder = tmp_path / "project"
    copy_run(completed, folder)
    return folder
