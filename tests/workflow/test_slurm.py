"""The README's commands for a cluster, as they stand, on a real Slurm: ``make test-slurm``."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from slurm_cluster import CPUS, missing, slurm
from workspace import PROJECT, copy_downloads, copy_project, run

from wrinklefree.schema.load import read_yaml
from wrinklefree.tracking.artifact import read_manifest

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]

README = (PROJECT / "README.md").read_text()
STAGE2, FORCED = re.findall(r"`(snakemake --workflow-profile [^`]+)`", README)
STEPS = 48


class Cluster:
    """A project and the cluster that runs it."""

    def __init__(self, project: Path, environment: dict[str, str]) -> None:
        self.project, self.environment = project, environment

    def run(
        self, command: str, meanwhile: Callable[[subprocess.Popen[str]], None] | None = None
    ) -> str:
        """Output of a command that must succeed; ``meanwhile`` is called while it runs."""
        output = self.project / "output.log"
        with output.open("w") as log:
            words = shlex.split(command)
            process = subprocess.Popen(
                words, cwd=self.project, env=self.environment, stdout=log, stderr=log, text=True
            )
            try:
                if meanwhile:
                    meanwhile(process)
                status = process.wait()
            finally:
                process.kill()
        assert status == 0, output.read_text()
        return output.read_text()

    def parents(self) -> int:
        """Runs of the pipeline that MLflow knows."""
        with contextlib.closing(sqlite3.connect(self.project / "mlflow.db")) as database:
            query = (
                "select count(*) from runs where run_uuid not in"
                " (select run_uuid from tags where key = 'mlflow.parentRunId')"
            )
            return database.execute(query).fetchone()[0]

    def digest(self, folder: str) -> str:
        weights = self.project / folder / "model.safetensors"
        return hashlib.sha256(weights.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    project = tmp_path_factory.mktemp("project")
    copy_project(project)
    copy_downloads(project)
    run(project, "wrinklefree", "preset", "tiny")
    parameters = read_yaml(project / "params.yaml")
    parameters["stage2"]["steps"] = STEPS  # long enough to be cancelled in the middle
    (project / "params.yaml").write_text(yaml.safe_dump(parameters, sort_keys=False))
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield Cluster(project, environment)


def record_of_stage2(cluster: Cluster) -> dict[str, Any]:
    return json.loads((cluster.project / "provenance" / "models" / "stage2.json").read_text())


def test_the_pipeline_runs_with_the_cpus_of_its_jobs_and_one_parent_in_mlflow(cluster: Cluster):
    output = cluster.run(STAGE2)
    assert "Job stats" in output
    assert record_of_stage2(cluster)["threads"] == CPUS
    assert cluster.parents() == 1
    for stage in ("fetch_source", "base", "stage2"):
        assert list((cluster.project / "logs" / "slurm" / f"rule_{stage}").rglob("*.log")), stage


def test_a_cancelled_job_is_tried_again_and_ends_with_the_same_bytes(cluster: Cluster):
    before = cluster.digest("models/stage2")
    log = cluster.project / "logs" / "stage2.log"
    log.unlink()
    said = []

    def cancel(process: subprocess.Popen[str]) -> None:
        work = cluster.project / "work"
        while not list(work.glob(f"stage2/{16 * '?'}/step-*/manifest.json")):
            assert process.poll() is None, "the stage ended before it could be cancelled"
            time.sleep(0.05)
        job = re.search(r"Slurm job (\d+)", (work / "locks" / "stage2.lock").read_text())
        assert job
        said.append(job[1])
        subprocess.run(["scancel", job[1]], env=cluster.environment, check=True)

    output = cluster.run(f"{STAGE2} --forcerun stage2", cancel)
    assert f"SLURM-job '{said[0]}' failed, SLURM status is: 'CANCELLED'" in output
    assert "going on from step" in log.read_text()
    assert cluster.digest("models/stage2") == before


def test_a_stage_that_asks_for_a_gpu_and_a_cpu_runs_where_they_are_and_uses_them(cluster: Cluster):
    preset = cluster.project / "gpu.yaml"
    preset.write_text("resources: {gpus: 1}")
    output = cluster.run(
        f"{STAGE2} --forcerun stage2 --set-resources stage2:cpus_per_task=1"
        f" --configfile {preset.name}"
    )
    assert "Auto-selected partition 'gpu' for job stage2" in output
    assert record_of_stage2(cluster)["threads"] == 1


def test_forcing_a_name_that_stands_for_several_jobs_runs_each_of_them(cluster: Cluster):
    parents = cluster.parents()
    cluster.run(FORCED)
    assert read_manifest(cluster.project / "models" / "export")
    made = {student: cluster.digest(f"models/distill/{student}") for student in ("ar", "dlm")}
    output = cluster.run(FORCED.replace("--forcerun", "distill --forcerun"))
    assert re.search(r"^distill_student +2$", output, re.MULTILINE)
    assert made == {student: cluster.digest(f"models/distill/{student}") for student in made}
    assert cluster.parents() == parents + 2
