from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wrinklefree.tracking import cpus
from wrinklefree.tracking.cpus import available_cpus

VARIABLES = ("SLURM_CPUS_PER_TASK", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 64 CPUs that limits nothing; the folder is its /sys/fs/cgroup."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(cpus, "_CGROUPS", tmp_path)
    monkeypatch.setattr(cpus, "_MEMBERSHIP", tmp_path / "membership")
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def test_an_unlimited_machine_gives_all_of_its_cpus():
    assert available_cpus() == 64


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_CPUS_PER_TASK": "4"}, 4),
        ({"GOTO_NUM_THREADS": "3", "OMP_NUM_THREADS": "3"}, 3),
        ({"SLURM_CPUS_PER_TASK": "4", "GOTO_NUM_THREADS": "8", "OMP_NUM_THREADS": "8"}, 4),
        ({"OMP_NUM_THREADS": "1"}, 64),  # a person's, who may want many processes
        ({"SLURM_CPUS_PER_TASK": "many"}, 64),
        ({"SLURM_CPUS_PER_TASK": "0"}, 1),
    ],
)
def test_what_slurm_and_snakemake_gave_counts(
    variables: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert available_cpus() == expected


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/job/step\n", {"job/step/cpu.max": "200000 100000"}, 2),
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000", "job/cpu.max": "350000 100000"}, 3),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/elsewhere\n", {}, 64),
        (
            "4:cpu,cpuacct:/job\n3:memory:/other\n",
            {"cpu/job/cpu.cfs_quota_us": "400000", "cpu/job/cpu.cfs_period_us": "100000"},
            4,
        ),
        (
            "4:cpu:/job\n",
            {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"},
            64,
        ),
    ],
)
def test_quotas_of_control_groups_count(
    machine: Path, membership: str, files: dict[str, str], expected: int
):
    (machine / "membership").write_text(membership)
    for name, content in files.items():
        (machine / name).parent.mkdir(parents=True, exist_ok=True)
        (machine / name).write_text(content + "\n")
    assert available_cpus() == expected


@pytest.mark.parametrize(("before", "given", "after"), [(3, "1", 1), (1, "500", 1)])
def test_torch_loses_threads_that_were_not_given_and_gains_none(
    before: int, given: str, after: int
):
    code = (
        f"import torch; torch.set_num_threads({before})\n"
        "from wrinklefree.tracking.cpus import use_available_cpus\n"
        "use_available_cpus(); print(torch.get_num_threads())"
    )
    environment = os.environ | {"SLURM_CPUS_PER_TASK": given}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert int(result.stdout) == after
