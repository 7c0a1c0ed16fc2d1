"""MLflow: a parent run per pipeline run, a nested run per stage.

Tracking never costs a training run: the first failure is said on stderr, and the stage goes on
without it. mlflow is imported when a run starts, not before.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wrinklefree.tracking.artifact import MANIFEST, Artifact
from wrinklefree.tracking.locks import exclusive_lock
from wrinklefree.tracking.pipeline import pipeline_identity
from wrinklefree.tracking.terminal import say

EXPERIMENT = "wrinklefree"
MAX_FILE_BYTES = 32 << 20
"""Larger files are not copied to the tracking server; the manifest has their path and hash."""
_FLUSH_SECONDS = 10.0
_BATCH = 1000
_DATASET_DIGEST_LENGTH = 36
_LOCK = Path("work/locks/mlflow.lock")


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or a SQLite file in the project folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}"


class StageRun:
    """The MLflow run of one stage. Its methods never raise."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._client: Any = None
        self._run_id = ""
        self._parent_id = ""
        self._metrics: list[tuple[str, float, int, int]] = []
        self._flushed = time.monotonic()
        self._guard(self._start)

    @property
    def active(self) -> bool:
        """Whether tracking works so far."""
        return self._client is not None

    def log_parameters(self, settings: dict[str, Any]) -> None:
        """Log nested settings under their dotted names."""

        def log() -> None:
            from mlflow.entities import Param

            params = [Param(name, str(value)) for name, value in _flatten(settings).items()]
            self._client.log_batch(self._run_id, params=params)

        self._guard(log)

    def log_inputs(self, inputs: dict[str, Artifact]) -> None:
        """Log input artifacts as data sets, by the digest of their manifests."""

        def log() -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            datasets = [
                DatasetInput(
                    Dataset(
                        name=str(artifact.path),
                        digest=artifact.manifest.digest[:_DATASET_DIGEST_LENGTH],
                        source_type="local",
                        source=json.dumps({"uri": str(artifact.path / MANIFEST)}),
                        profile=json.dumps(artifact.manifest.facts),
                    ),
                    [InputTag("mlflow.data.context", name)],
                )
                for name, artifact in inputs.items()
            ]
            self._client.log_inputs(self._run_id, datasets)

        self._guard(log)

    def log_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Log numbers of one training step. They reach the server in batches."""
        now = int(time.time() * 1000)
        self._metrics += [(name, value, now, step) for name, value in metrics.items()]
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send the metrics gathered so far."""
        pending, self._metrics = self._metrics, []
        self._flushed = time.monotonic()

        def send() -> None:
            from mlflow.entities import Metric

            for start in range(0, len(pending), _BATCH):
                batch = [Metric(*metric) for metric in pending[start : start + _BATCH]]
                self._client.log_batch(self._run_id, metrics=batch)

        self._guard(send)

    def log_output(self, artifact: Artifact) -> None:
        """Log the manifest of what the stage made, its files and its facts."""

        def log() -> None:
            manifest = artifact.manifest
            self._client.set_tag(self._run_id, "wrinklefree.output", str(artifact.path))
            self._client.set_tag(self._run_id, "wrinklefree.output.digest", manifest.digest)
            where = artifact.path.name if artifact.path.is_absolute() else str(artifact.path)
            self._client.log_artifact(self._run_id, str(artifact.path / MANIFEST), where)
            for name, record in manifest.files.items():
                if record.size <= MAX_FILE_BYTES:
                    folder = (Path(where) / name).parent.as_posix()
                    self._client.log_artifact(self._run_id, str(artifact.path / name), folder)

        self._guard(log)
        facts = _flatten(artifact.manifest.facts)
        numbers = {name: value for name, value in facts.items() if isinstance(value, int | float)}
        self.log_metrics(0, {f"facts/{name}": float(value) for name, value in numbers.items()})

    def finish(self, succeeded: bool) -> None:
        """Close the run, and mark the pipeline's run with how its latest stage ended."""
        self.flush()
        status = "FINISHED" if succeeded else "FAILED"

        def close() -> None:
            self._client.set_terminated(self._run_id, status)
            with exclusive_lock(_LOCK):
                # A stage that ends well does not undo another's failure.
                parent = self._client.get_run(self._parent_id)
                if parent.info.status != "FAILED":
                    self._client.set_terminated(self._parent_id, status)

        self._guard(close)

    def _start(self) -> None:
        # A dead server must not hold up a stage: one retry, ten seconds.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        from mlflow import MlflowClient

        identity = pipeline_identity()
        with exclusive_lock(_LOCK):
            client = MlflowClient(tracking_uri())
            experiment = client.get_experiment_by_name(EXPERIMENT)
            experiment_id = experiment.experiment_id if experiment else _create_experiment(client)
            found = client.search_runs(
                [experiment_id], f"tags.`wrinklefree.pipeline` = '{identity}'", max_results=1
            )
            parent = found[0] if found else _create_parent(client, experiment_id, identity)
        tags = {"mlflow.parentRunId": parent.info.run_id, **_source_tags()}
        run = client.create_run(experiment_id, tags=tags, run_name=self._label)
        self._parent_id, self._run_id = parent.info.run_id, run.info.run_id
        self._client = client

    def _guard(self, action: Callable[[], None]) -> None:
        if self._client is None and action != self._start:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever a tracking server does, training goes on
            self._client = None
            reason = " ".join(str(error).split())[:300]
            say(
                f"warning: {self._label}: tracking at {tracking_uri()} failed and is off for the"
                f" rest of this stage ({type(error).__name__}: {reason});"
                " the stage goes on and loses nothing else"
            )


def _create_experiment(client: Any) -> str:
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return client.create_experiment(EXPERIMENT)
    return client.create_experiment(EXPERIMENT, Path("mlartifacts").resolve().as_uri())


def _create_parent(client: Any, experiment_id: str, identity: str) -> Any:
    return client.create_run(
        experiment_id,
        run_name=identity,
        tags={"wrinklefree.pipeline": identity, **_source_tags()},
    )


def _source_tags() -> dict[str, str]:
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return {}
    dirty = str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower()
    return {"mlflow.source.git.commit": commit, "wrinklefree.git.dirty": dirty}


def _git(*arguments: str) -> str:
    """Output of git, empty where there is no git or no repository."""
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat.update(_flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat
