"""How many CPUs this process was given, which on a cluster are fewer than the machine has."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_GIVEN = (
    # Slurm's share of a job; without cgroups nothing else tells of it.
    ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_PER_TASK"),
    # Snakemake exports a job's threads under several names. OMP_NUM_THREADS alone may be what a
    # person wants of every process, and says nothing about how many processes there may be.
    ("GOTO_NUM_THREADS", "OMP_NUM_THREADS"),
)
"""Variables with a number of CPUs, and the variable that must be there for it to count."""


def available_cpus() -> int:
    """CPUs that this process may use: the least of what Slurm, Snakemake and the system say."""
    counts = [_affinity(), *_quotas()]
    for sign, variable in _GIVEN:
        number = os.environ.get(variable, "") if sign in os.environ else ""
        if number.isascii() and number.isdigit():
            counts.append(int(number))
    return max(1, min(counts))


def use_available_cpus() -> None:
    """Have libraries whose threads are not counted by the stage itself keep to the given CPUs.

    Threads are only ever taken away: sums and so the bytes of a run depend on torch's number.
    """
    cpus = available_cpus()
    # Of tokenizers, which asks the system only; read when its threads start.
    os.environ.setdefault("RAYON_NUM_THREADS", str(cpus))
    if torch := sys.modules.get("torch"):  # imported by the stages that compute with it
        torch.set_num_threads(min(cpus, torch.get_num_threads()))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas() -> list[int]:
    """CPUs by the time quotas of this process's control groups and those above them."""
    if not _MEMBERSHIP.is_file():
        return []
    found = []
    for line in _MEMBERSHIP.read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            roots = [(_CGROUPS, _quota_v2)]
        elif "cpu" in controllers.split(","):
            roots = [(_CGROUPS / name, _quota_v1) for name in {"cpu", controllers}]
        else:
            continue
        for root, read in roots:
            folder = root / group.lstrip("/")
            for level in (folder, *folder.parents):
                if level.is_relative_to(root) and (quota := read(level)):
                    found.append(max(1, int(quota)))
    return found


def _quota_v2(folder: Path) -> float | None:
    words = _words(folder / "cpu.max")
    return None if len(words) != 2 or words[0] == "max" else int(words[0]) / int(words[1])


def _quota_v1(folder: Path) -> float | None:
    quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
    return int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:  # no such group in this container's view, or not ours to read
        return []
