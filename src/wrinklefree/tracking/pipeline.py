"""Which run of the pipeline a process belongs to."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

VARIABLE = "WRINKLEFREE_PIPELINE"
_ENGINES = ("snakemake", "dvc")


def pipeline_identity() -> str:
    """A name that all stages of one invocation of an engine share.

    It is the engine's own process, the outermost of this one and those above it. Snakemake hands
    it to its jobs in ``WRINKLEFREE_PIPELINE``, as they may run on other machines. A stage run by
    hand is its own pipeline.
    """
    if given := os.environ.get(VARIABLE):
        return given
    this = psutil.Process()
    identity = _name("script", this)
    for process in (this, *this.parents()):
        try:
            words = [Path(word).name for word in process.cmdline()[:3]]
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        for engine in _ENGINES:
            if engine in words:
                identity = _name(engine, process)
    return identity


def _name(engine: str, process: psutil.Process) -> str:
    return f"{engine}-{process.pid}-{int(process.create_time())}"
