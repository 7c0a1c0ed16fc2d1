"""Running pipelines: datatrove's local executor, or its Slurm executor and waiting for the jobs."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import multiprocess
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from loguru import logger

from wrinklefree.errors import UserError
from wrinklefree.text.clean import datatrove_steps
from wrinklefree.text.clean.settings import DatatroveEngine
from wrinklefree.tracking.cpus import available_cpus
from wrinklefree.tracking.progress import progress


class Pipeline(NamedTuple):
    """Steps that ``tasks`` tasks take, when those of the pipeline before are done."""

    name: str
    steps: list[Any]
    tasks: int


def run_pipelines(
    pipelines: list[Pipeline], engine: DatatroveEngine, work: Path, name: str
) -> None:
    """Run what is not complete in ``work``, each pipeline after the one before it.

    datatrove's logs go to ``work/pipelines/<number>_<pipeline>/``. Raises what a step raised, or
    UserError where jobs of a cluster ended without having done their tasks.
    """
    if engine.executor == "slurm":
        _run_on_slurm(slurm_executors(pipelines, engine, work, name), work)
        return
    # What every worker would otherwise import anew for each pipeline.
    context = multiprocess.get_context("forkserver")  # pyright: ignore[reportAttributeAccessIssue]
    context.set_forkserver_preload([__name__, datatrove_steps.__name__])
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
) -> list[SlurmExecutor]:
    """One executor for each pipeline, each depending on the one before.

    sbatch waits for the job of the last one. Where a job fails, Slurm ends those behind it.
    """
    settings = engine.slurm
    assert settings is not None
    executors: list[SlurmExecutor] = []
    for number, pipeline in enumerate(pipelines):
        wait = {"wait": ""} if pipeline is pipelines[-1] else {}
        arguments: dict[str, Any] = {
            "tasks": pipeline.tasks,
            "workers": engine.workers,
            "partition": settings.partition,
            "time": settings.time,
            "cpus_per_task": settings.cpus_per_task,
            "mem_per_cpu_gb": settings.memory_gb_per_cpu,
            "qos": settings.quality_of_service,
            "env_command": settings.environment_command,
            "sbatch_args": {"kill-on-invalid-dep": "yes", **wait, **settings.sbatch},
            "job_name": f"clean.{name}.{pipeline.name}",
            "logging_dir": str(log_folder(work, number, pipeline)),
            "depends": executors[-1] if executors else None,
        }
        executors.append(SlurmExecutor(pipeline.steps, **arguments))
    return executors


def log_folder(work: Path, number: int, pipeline: Pipeline) -> Path:
    """Where datatrove keeps logs and marks the tasks of a pipeline that are complete."""
    return work / "pipelines" / f"{number:02d}_{pipeline.name}"


class QuietExecutor(LocalPipelineExecutor):
    """datatrove's local executor, whose tasks write to a file instead of the terminal."""

    def _launch_run_for_rank(self, rank: int, *arguments: Any, **options: Any) -> Any:
        with quiet(Path(self.logging_dir.path)):
            return super()._launch_run_for_rank(rank, *arguments, **options)


class SlurmExecutor(SlurmPipelineExecutor):
    """datatrove's Slurm executor without a job of its own that sums up statistics."""

    def launch_merge_stats(self) -> None:
        """Nobody reads them, and sbatch would wait for the job."""


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


def _run_on_slurm(executors: list[SlurmExecutor], work: Path) -> None:
    """Queue all jobs and wait; UserError if a task isn't complete then."""
    # sbatch fails where the last job does, and then it's told below what is missing.
    with quiet(work), contextlib.suppress(subprocess.CalledProcessError):
        # Launches those that it depends on, first to last. Not run(): inside of a Slurm job that
        # would take this process for one of the tasks.
        executors[-1].launch_job()
    for executor in executors:
        if ranks := executor.get_incomplete_ranks(skip_completed=True):
            raise UserError(
                f"Slurm jobs failed or were refused: {len(ranks)} of {executor.tasks} tasks of"
                f" {executor.job_name} are not complete; see {executor.logging_dir.path}/logs and"
                f" {executor.slurm_logs_folder}, then run again: complete tasks are kept"
            )
