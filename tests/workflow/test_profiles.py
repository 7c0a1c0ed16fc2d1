"""What the Slurm profile asks a cluster for; commands that stand in for Slurm's note it down."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO, cast

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from workspace import ENVIRONMENT, copy_project, pretend_everything_ran

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning"),  # inside of DVC
]

COMMANDS = {
    # Every job fails at once: nothing is to be run here.
    "sbatch": 'printf "%s\\n" "$*" "$WRINKLEFREE_PIPELINE" >> submitted; wc -l < submitted',
    "squeue": 'for n in 2 4 6 8; do echo "$n|FAILED"; done',
    "scontrol": 'echo "MinJobAge = 300 sec"',
    "sinfo": "true",
    "sacct": 'echo "Slurm accounting storage is disabled" >&2; exit 1',
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    copy_project(folder)
    pretend_everything_ran(folder)
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(finished, folder, symlinks=True)
    (folder / "bin").mkdir()
    for name, script in COMMANDS.items():
        command = folder / "bin" / name
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
    return folder


def submitted(project: Path, *options: str, **variables: str) -> list[tuple[str, str]]:
    """Arguments of ``sbatch`` and the pipeline's name there, of every job that was submitted."""
    path = os.pathsep.join([str(project / "bin"), ENVIRONMENT["PATH"]])
    command = ["snakemake", *options, "--slurm-init-seconds-before-status-checks", "1"]
    environment = ENVIRONMENT | {"PATH": path} | variables
    with subprocess.Popen(
        command, cwd=project, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        said = ""
        for line in cast("IO[str]", process.stderr):
            said += line
            if line.startswith("Shutting down"):  # which takes half a minute: no job follows
                process.kill()
    assert (project / "submitted").is_file(), said
    assert "SLURM status is: 'FAILED'" in said and said.endswith(
        "Shutting down, this might take some time.\n"
    )
    lines = (project / "submitted").read_text().splitlines()
    return [(arguments, name) for arguments, name in zip(lines[::2], lines[1::2], strict=True)]


def test_the_slurm_profile_starts_and_retries(project: Path):
    profile = ("--profile", "workflow/profiles/slurm")
    jobs = submitted(project, "stage2", *profile, "--forcerun", "stage2")
    assert len(jobs) == 3, "a job that was preempted or cancelled is tried again, twice"
    first, pipeline = jobs[0]
    assert "-p cpu" in first and "--gpus" not in first
    assert "--cpus-per-task=2" in first and "--requeue" in first
    memory = [int(job.split("--mem ")[1].split()[0]) for job, _ in jobs]
    assert memory == [memory[0], 2 * memory[0], 3 * memory[0]]
    assert pipeline.startswith("snakemake-") and {name for _, name in jobs} == {pipeline}


def test_cores_of_this_machine_are_no_limit_for_those_of_a_cluster(project: Path):
    profile = ("--profile", "workflow/profiles/slurm", "--retries", "0")
    ((job, _),) = submitted(
        project, "stage2", *profile, "--forcerun", "stage2", "--set-threads", "stage2=500"
    )
    assert "--cpus-per-task=500" in job


SLURM = ("--workflow-profile", "workflow/profiles/slurm", "--retries", "0")


def test_cores_are_not_what_a_job_asks_for(project: Path):
    ((job, _),) = submitted(project, "stage2", *SLURM, "--cores", "64", "--forcerun", "stage2")
    assert "--cpus-per-task=2" in job


def test_what_the_user_sets_for_a_stage_wins(project: Path):
    ((job, name),) = submitted(
        project,
        *("stage2", *SLURM, "--forcerun", "stage2", "--set-threads", "stage2=5"),
        *("--set-resources", "stage2:mem_mb=777", "stage2:slurm_partition=mine"),
        WRINKLEFREE_PIPELINE="mine; it's 'one'",
    )
    assert "--cpus-per-task=5" in job and "--mem 777" in job and "-p mine" in job
    assert name == "mine; it's 'one'"


def test_a_full_size_preset_trains_on_a_gpu_and_has_memory_for_it(project: Path):
    preset = project / "params" / "large.yaml"
    preset.write_text("resources: {gpus: 1, model_parameters: 4000000000}\n")
    ((job, _),) = submitted(
        project, "stage2", *SLURM, "--forcerun", "stage2", "--configfile", "params/large.yaml"
    )
    assert "-p gpu" in job and "--gpus=1" in job and "--cpus-per-task=8" in job
    assert int(job.split("--mem ")[1].split()[0]) > 64_000
