"""Nothing runs that nobody asked for, and nothing is lost: both engines, in a real project."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from workspace import CHECKED, ENVIRONMENT, dvc_accept, run

from wrinklefree.schema.load import read_yaml
from wrinklefree.tracking.artifact import open_artifact

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]


def change(project: Path, edit: Any) -> None:
    params = project / "params.yaml"
    parameters = read_yaml(params)
    edit(parameters)
    params.write_text(yaml.safe_dump(parameters, sort_keys=False))


def first_source(name: str) -> Any:
    def edit(parameters: dict[str, Any]) -> None:
        sources = parameters["sources"]
        parameters["sources"] = {name: sources["maths"], **sources}

    return edit


def first_run(name: str) -> Any:
    def edit(parameters: dict[str, Any]) -> None:
        parameters["regmix"]["runs"][0] = name

    return edit


COMMANDS = {
    "whole": ["dvc", "repro"],
    "research": ["dvc", "repro", "research/dvc.yaml:regmix"],
    "one stage": ["dvc", "repro", "--single-item", "fetch@e; touch pwned; true"],
    "one run": ["dvc", "repro", "-s", "research/dvc.yaml:regmix_run@0; touch pwned"],
    "snakemake": ["snakemake", "--cores", "1"],
}


@pytest.mark.parametrize(
    ("edit", "commands"),
    [
        (first_source("e; touch pwned; true"), ("whole", "one stage", "snakemake")),
        (first_source("$(touch pwned)"), ("whole", "snakemake")),
        (first_run("0; touch pwned"), ("research", "one run", "snakemake")),
        (first_source("../../precious"), ("whole", "snakemake")),
        (first_source("../../../evil"), ("whole", "snakemake")),
    ],
)
def test_a_name_in_params_runs_no_command_and_removes_nothing(
    project: Path, edit: Any, commands: tuple[str, ...]
):
    change(project, edit)
    run(project, "dvc", "commit", "--force", "--quiet", "mixture", check=False)
    (project / "precious").mkdir()
    (project / "precious" / "thesis.txt").write_text("years")
    before = {path.name for path in (*project.iterdir(), *project.parent.iterdir())}
    for command in commands:
        result = subprocess.run(
            COMMANDS[command], cwd=project, env=ENVIRONMENT, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert result.returncode, command
        assert "Traceback" not in result.stdout
    after = {path.name for path in (*project.iterdir(), *project.parent.iterdir())}
    assert after <= before | {"dvc.lock", "report.html"}
    assert (project / "precious" / "thesis.txt").read_text() == "years"
    assert not (project / CHECKED).exists()


CANCELLED = {
    "snakemake": ["snakemake", "--cores", "1", "--forcerun", "stage2", "stage2"],
    "dvc": ["dvc", "repro", "--force", "--single-item", "stage2"],
}


@pytest.mark.parametrize("engine", ["snakemake", pytest.param("dvc", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=lambda how: how.name)
def test_a_forced_rerun_that_is_cancelled_leaves_what_restore_puts_back(
    project: Path, engine: str, how: signal.Signals
):
    if engine == "dvc":
        dvc_accept(project)
    before = open_artifact(project / "models" / "stage2").manifest
    process = subprocess.Popen(
        CANCELLED[engine], cwd=project, env=ENVIRONMENT, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(
        (project / "work" / "stage2").glob(f"{16 * '?'}/step-*")
    ):  # not of a finished run
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, how)
    output, _ = process.communicate()
    assert not (project / "models" / "stage2" / "manifest.json").exists(), "the engine kept it"
    if how == signal.SIGINT:
        assert "stage2: wrinklefree restore models/stage2 puts back the last finished one" in output
    listed = run(project, "wrinklefree", "restore")
    assert "models/stage2: gone, can be put back\n" in listed
    assert "models/base: stands\n" in listed
    run(project, "wrinklefree", "restore", "models/stage2")
    assert open_artifact(project / "models" / "stage2").manifest == before


def test_settings_of_a_source_with_thousands_of_paths_fit_a_command(project: Path):
    def edit(parameters: dict[str, Any]) -> None:
        paths = [f"factbook/a_folder_of_a_long_name/{number}.json" for number in range(4_000)]
        parameters["sources"]["reference"]["exclude"] = paths

    change(project, edit)
    output = run(project, "snakemake", "data/raw/reference/manifest.json", "--cores", "1")
    assert "fetch.reference: data/raw/reference done" in output
