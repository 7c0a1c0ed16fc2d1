"""MLflow: a parent run per pipeline run, a nested run per stage.

Tracking never costs a training run. While the store does not answer, what is logged is kept and
sent later; a store that can't be used ends the tracking of the stage. Either is said on stderr, and
the stage goes on. mlflow is imported when a run starts, not before.

A stage that was killed and resumed goes on with its run: the run's id lies in the work folder.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse
from urllib.request import url2pathname

from wrinklefree.tracking import parents, store
from wrinklefree.tracking.artifact import MANIFEST, MLFLOW_MODEL, Artifact, flatten
from wrinklefree.tracking.files import write_atomically
from wrinklefree.tracking.locks import exclusive_lock
from wrinklefree.tracking.pipeline import present_commit
from wrinklefree.tracking.terminal import say

MAX_FILE_BYTES = 32 << 20
"""Larger files are not copied to the tracking server; the manifest has their path and hash."""
_WEIGHTS = "model.safetensors"
"""What of a model of MLflow the server gets however large it is, or nobody could load it there."""
RUN_FILE = "mlflow_run"
"""In the work folder: the id of the run that a resumed stage goes on with."""
Outcome = Literal["FINISHED", "FAILED", "KILLED"]
_FLUSH_SECONDS = 10.0
_LONGEST_WAIT = 600.0
_KEPT = 200_000
"""Metrics that are kept at most while the store does not answer."""
_DATASET_DIGEST_LENGTH = 36
_COMPARISON = "evaluate"
"""The stage whose losses are metrics of the pipeline's run too."""
_Metric = tuple[str, float, int, int]


class StageRun:
    """The MLflow run of one stage. Its methods never raise.

    Parameters
    ----------
    work : a folder that outlives the process and changes with settings, inputs and code. The stage
        goes on with the run that an earlier process noted there.
    parent : id of the stage's run that this one is a part of; empty, as of a stage that is not
        tracked: nothing is. None: the run of the pipeline.
    """

    def __init__(self, label: str, work: Path, parent: str | None = None) -> None:
        self._label = label
        self._work = work
        self._client: Any = None
        self._experiment_id = self._run_id = ""
        self._parent_id = parent or ""
        self._due: list[Callable[[], None]] = []
        self._metrics: list[_Metric] = []
        self._count = 0
        """Metrics that are not sent yet."""
        self._last_steps: dict[str, int] = {}
        """By name, the last step that the store has from an earlier process."""
        self._off = parent == ""
        self._flushed = time.monotonic()
        self._wait = 0.0
        """Seconds until the next attempt; above 0 while the store does not answer."""
        self._next = 0.0
        """When the store is asked again, on the monotonic clock."""
        self._said: set[str] = set()
        self._do(self._start)

    @property
    def id(self) -> str:
        """Id of the run in MLflow; empty where the store was never reached."""
        return self._run_id

    @property
    def active(self) -> bool:
        """Whether all that was logged so far has reached the store."""
        return not (self._off or self._due)

    def log_parameters(self, settings: dict[str, Any]) -> None:
        """Log nested settings under their dotted names."""

        def log() -> None:
            from mlflow.entities import Param

            params = [Param(name, str(value)) for name, value in flatten(settings).items()]
            self._client.log_batch(self._run_id, params=params)

        self._do(log)

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

        self._do(log)

    def log_tags(self, tags: dict[str, str]) -> None:
        """Log words about the run."""

        def log() -> None:
            from mlflow.entities import RunTag

            self._client.log_batch(self._run_id, tags=[RunTag(*tag) for tag in tags.items()])

        self._do(log)

    def log_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Log numbers of one training step. They reach the store in batches.

        A resumed stage may log steps again that it logged before: the store gets what it lacks.
        """
        if self._off:
            return
        now = int(time.time() * 1000)
        self._metrics += [(name, value, now, step) for name, value in metrics.items()]
        self._count += len(metrics)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS or self._count > _KEPT:
            self.flush()

    def flush(self) -> None:
        """Send the metrics gathered so far."""
        pending, self._metrics = self._metrics, []
        self._flushed = time.monotonic()
        self._do(partial(self._send, pending))

    def log_output(self, artifact: Artifact) -> None:
        """Log the manifest of what the stage made, its files and its facts."""
        facts = flatten(artifact.manifest.facts)
        numbers = {
            name: float(value) for name, value in facts.items() if isinstance(value, int | float)
        }
        # MLflow shows groups by their names: the curves of a training come before single numbers.
        self.log_metrics(0, {f"written/{name}": value for name, value in numbers.items()})
        self._do(partial(self._log_files, artifact))
        if artifact.manifest.stage == _COMPARISON:
            self._do(partial(self._log_comparison, numbers))

    def finish(self, outcome: Outcome) -> None:
        """Close the run, and mark the pipeline's run with the worst that its stages have."""
        self._next = 0.0  # one more attempt
        self.flush()
        self._do(partial(self._close, outcome))
        if self._due:
            self._say("did not come back: what was logged since then is not there")

    def _start(self) -> None:
        client_class, commit = store.load_mlflow(), present_commit()
        with exclusive_lock(store.lock_file()):
            self._client, self._experiment_id = store.open_store(client_class)
            parents.close_orphans(self._client, self._experiment_id)
            self._parent_id = self._parent_id or parents.find_parent(
                self._client, self._experiment_id, commit
            )
            tags = {parents.PARENT: self._parent_id, **parents.process_tags(), **commit.tags()}
            if self._go_on(tags):
                return
            run = self._client.create_run(self._experiment_id, tags=tags, run_name=self._label)
            self._run_id = run.info.run_id
            write_atomically(self._work / RUN_FILE, self._run_id)

    def _go_on(self, tags: dict[str, str]) -> bool:
        """Take up the run of an earlier process, if the work folder names one that is here."""
        from mlflow.entities import RunTag

        file = self._work / RUN_FILE
        run = self._find(file.read_text(errors="replace").strip()) if file.is_file() else None
        if run is None:
            return False
        if run.info.status == "RUNNING":
            parents.close_orphan(self._client, run)
        times = int(run.data.tags.get("wrinklefree.resumed", "0")) + 1
        tags = tags | {"wrinklefree.resumed": str(times)}
        if (before := run.data.tags.get(parents.PARENT)) != tags[parents.PARENT]:
            tags["wrinklefree.parent.before"] = str(before)
        self._client.log_batch(run.info.run_id, tags=[RunTag(*tag) for tag in tags.items()])
        self._client.update_run(run.info.run_id, status="RUNNING")
        self._run_id = run.info.run_id
        self._last_steps = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        return True

    def _find(self, run_id: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if store.is_outage(error):
                raise
            return None  # another store than before
        ours = run.info.experiment_id == self._experiment_id
        open_ = run.info.lifecycle_stage == "active" and run.info.status != "FINISHED"
        return run if ours and open_ else None

    def _send(self, pending: list[_Metric]) -> None:
        from mlflow.entities import Metric

        new = [metric for metric in pending if metric[3] > self._last_steps.get(metric[0], -1)]
        # After an answer that got lost they are sent anew, of which the store keeps one: the times
        # are the same. The client splits what is too much for a request.
        self._client.log_batch(self._run_id, metrics=[Metric(*metric) for metric in new])
        self._count -= len(pending)

    def _log_files(self, artifact: Artifact) -> None:
        manifest = artifact.manifest
        self._client.set_tag(self._run_id, "wrinklefree.output", str(artifact.path))
        self._client.set_tag(self._run_id, parents.OUTPUT_DIGEST, manifest.digest)
        where = artifact.path.name if artifact.path.is_absolute() else str(artifact.path)
        self._client.log_artifact(self._run_id, str(artifact.path / MANIFEST), where)
        for name, record in manifest.files.items():
            folder = (Path(where) / name).parent.as_posix()
            if record.size <= MAX_FILE_BYTES:
                self._client.log_artifact(self._run_id, str(artifact.path / name), folder)
            elif name == _WEIGHTS and MLFLOW_MODEL in manifest.files:
                self._log_weights(artifact.path / name, folder)

    def _log_weights(self, file: Path, folder: str) -> None:
        """Log a large file, by a hard link where the store's files lie on the same disk."""
        uri = urlparse(self._client.get_run(self._run_id).info.artifact_uri)
        if uri.scheme == "file":
            target = Path(url2pathname(uri.path)) / folder / file.name
            with contextlib.suppress(OSError):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                target.hardlink_to(file)
                return
        self._client.log_artifact(self._run_id, str(file), folder)

    def _log_comparison(self, numbers: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(name.replace(".", "/", 1), value, now, 0)
            for name, value in numbers.items()
            if name.startswith(("loss.", "recovered."))
        ]
        self._client.log_batch(self._parent_id, metrics=metrics)

    def _close(self, outcome: Outcome) -> None:
        ended = self._label if outcome == "FINISHED" else f"{self._label} ({outcome.lower()})"
        self._client.set_terminated(self._run_id, outcome)
        with exclusive_lock(store.lock_file()):
            parents.settle_parent(self._client, self._experiment_id, self._parent_id, ended)

    def _do(self, action: Callable[[], None]) -> None:
        """Do ``action`` after all that is due. While the store is away they stay due, in order."""
        if self._off:
            return
        self._due.append(action)
        if time.monotonic() >= self._next:
            self._deliver()

    def _deliver(self) -> None:
        while self._due:
            try:
                self._due[0]()
            except Exception as error:  # noqa: BLE001 - whatever a store does, training goes on
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                away = store.is_outage(error)
                if away and self._count <= _KEPT:
                    self._postpone(reason)
                    return
                if away or not self._run_id:
                    self._give_up(reason)
                    return
                self._say(f"refused what was logged ({reason}); the rest is tracked")
            self._due.pop(0)
        self._count = len(self._metrics)
        if self._wait:
            self._wait = self._next = 0.0
            self._say("answers again and has all that was logged in between", "")

    def _postpone(self, reason: str) -> None:
        self._wait = min(max(2 * self._wait, _FLUSH_SECONDS), _LONGEST_WAIT)
        self._next = time.monotonic() + self._wait
        self._say(
            f"does not answer ({reason}); the stage goes on, and what it logs is sent when the"
            " store answers again"
        )

    def _give_up(self, reason: str) -> None:
        self._off = True
        self._due, self._metrics = [], []
        self._say(
            f"failed and is off for the rest of this stage ({reason});"
            " the stage goes on and loses nothing else"
        )

    def _say(self, text: str, kind: str = "warning: ") -> None:
        """Say a line on tracking, once."""
        if text not in self._said:
            self._said.add(text)
            say(f"{kind}{self._label}: tracking at {store.tracking_uri()} {text}")
