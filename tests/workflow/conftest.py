"""A real run of the tiny preset, shared by the tests that look at it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from workspace import TARGETS, copy_downloads, copy_project, copy_run, run


@pytest.fixture(scope="session")
def completed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which everything has run on the tiny preset, from real packages."""
    folder = tmp_path_factory.mktemp("completed")
    copy_project(folder)
    copy_downloads(folder)
    run(folder, "wrinklefree", "preset", "tiny")
    run(folder, "snakemake", *TARGETS)
    return folder


@pytest.fixture
def project(completed: Path, tmp_path: Path) -> Path:
    """A copy of the completed project for one test to change."""
    folder = tmp_path / "project"
    copy_run(completed, folder)
    return folder
