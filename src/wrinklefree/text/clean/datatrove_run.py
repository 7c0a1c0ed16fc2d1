"""Running pipelines: datatrove's local executor, or its Slurm executor and waiting for the jobs."""

from __future__ import annotations

import contextlib
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import multiprocess
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from loguru import logger

from wrinklefree.errors import UserError
from wrinklefree.text.clean import datatrove_minhash as minhash
from wrinklefree.text.clean.datatrove_steps import Pipeline
from wrinklefree.text.clean.settings import DatatroveEngine
from wrinklefree.tracking.cpus import available_cpus
from wrinklefree.tracking.progress import progress

POLL_SECONDS = 15.0
_FORGOTTEN = "Invalid job id"
"""What squeue says when all of the jobs have ended a while ago."""
_NEVER = "DependencyNeverSatisfied"
"""Slurm's reason of a job whose predecessor failed; it stays in the queue."""


def run_pipelines(
    pipelines: list[Pipeline], engine: DatatroveEngine, work: Path, name: str
) -> None:
    """Run what is not complete in ``work``, each pipeline after the one before it.

    datatrove's logs go to ``work/pipelines/<number>_<pipeline>/``. Raises what a step raised, or
    UserError where jobs of a cluster ended without having done their tasks.
    """
    if engine.executor == "slurm":
        executors = slurm_executors(pipelines, engine, work, name)
        with quiet(work):
            # Launches those that it depends on, first to last. Not run(): inside of a Slurm job
            # that would take this process for one of the tasks.
            executors[-1].launch_job()
        _wait(executors)
        return
    # What every worker would otherwise import anew for each pipeline.
    context = multiprocess.get_context("forkserver")  # pyright: ignore[reportAttributeAccessIssue]
    context.set_forkserver_preload([__name__, minhash.__name__])
    for number, pipeline in enumerate(progress(pipelines, f"clean {name}", "pipelines")):
        executor = QuietExecutor(
            pipeline.steps,
            tasks=pipeline.tasks,
            workers=min(engine.workers, pipeline.tasks, available_cpus()),
            logging_dir=str(log_folder(work, number, pipeline)),
        )
        with quiet(work):
            executor.run()


def slurm_executors(
    pipelines: list[Pipeline], engine: DatatroveEngine, work: Path, name: str
) -> list[SlurmPipelineExecutor]:
    """One executor for each pipeline, each depending on the one before."""
    settings = engine.slurm
    assert settings is not None
    executors: list[SlurmPipelineExecutor] = []
    for number, pipeline in enumerate(pipelines):
        arguments: dict[str, Any] = {
            "tasks": pipeline.tasks,
            "workers": engine.workers,
            "partition": settings.partition,
            "time": settings.time,
            "cpus_per_task": settings.cpus_per_task,
            "mem_per_cpu_gb": settings.memory_gb_per_cpu,
            "qos": settings.quality_of_service,
            "env_command": settings.environment_command,
            "sbatch_args": dict(settings.sbatch),
            "job_name": f"clean.{name}.{pipeline.name}",
            "logging_dir": str(log_folder(work, number, pipeline)),
            "depends": executors[-1] if executors else None,
        }
        executors.append(SlurmPipelineExecutor(pipeline.steps, **arguments))
    return executors


def log_folder(work: Path, number: int, pipeline: Pipeline) -> Path:
    """Where datatrove keeps logs and marks the tasks of a pipeline that are complete."""
    return work / "pipelines" / f"{number:02d}_{pipeline.name}"


class QuietExecutor(LocalPipelineExecutor):
    """datatrove's local executor, whose tasks write to a file instead of the terminal."""

    def _launch_run_for_rank(self, rank: int, *arguments: Any, **options: Any) -> Any:
        with quiet(Path(self.logging_dir.path)):
            return super()._launch_run_for_rank(rank, *arguments, **options)


@contextlib.contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """Send what datatrove prints to ``folder/datatrove.log``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "datatrove.log").open("a", encoding="utf-8") as file,
        contextlib.redirect_stderr(file),
    ):
        logger.remove()
        logger.add(file)
        try:
            yield
        finally:
            # datatrove adds the standard error of now, the file that is closed here.
            logger.remove()


def _wait(executors: list[SlurmPipelineExecutor]) -> None:
    """Return when all tasks are complete; UserError when none of the jobs can run any more."""
    jobs = [str(executor.job_id) for executor in executors if executor.job_id not in (None, -1)]
    while any(executor.get_incomplete_ranks(skip_completed=True) for executor in executors):
        alive = _alive(jobs)
        if not alive:
            _check_complete(executors)
            return
        time.sleep(POLL_SECONDS)


def _check_complete(executors: list[SlurmPipelineExecutor]) -> None:
    for executor in executors:
        if ranks := executor.get_incomplete_ranks(skip_completed=True):
            raise UserError(
                f"the Slurm jobs ended, but {len(ranks)} of {executor.tasks} tasks of"
                f" {executor.job_name} are not complete; see {executor.logging_dir.path}/logs and"
                f" {executor.slurm_logs_folder}, then run again: complete tasks are kept"
            )


def _alive(jobs: list[str]) -> bool:
    """Whether Slurm still has a job that may run.

    Jobs don't end because the controller is busy or restarted: where it can't be asked, yes.
    """
    command = ["squeue", "--noheader", "--format=%r", f"--jobs={','.join(jobs)}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode and _FORGOTTEN not in result.stderr:
        warnings.warn(f"squeue failed and is asked again: {result.stderr.strip()}", stacklevel=2)
        return True
    reasons = result.stdout.split() if result.returncode == 0 else []
    return any(reason != _NEVER for reason in reasons)
