"""Runs of MLflow that outlive a stage: the pipeline's, and those whose process is gone.

Each function takes the lock of ``store.lock_file`` for granted.
"""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path
from typing import Any

import psutil

from wrinklefree.tracking.pipeline import (
    Commit,
    pipeline_identity,
    pipeline_key,
    pipeline_name,
    pipeline_note,
    storable,
)

PARENT = "mlflow.parentRunId"
OUTPUT_DIGEST = "wrinklefree.output.digest"
"""A tag of a stage's run: of the manifest of what it made."""
_KEY = "wrinklefree.pipeline.key"
"""A tag that only the run of a pipeline has."""
_NOTE = "mlflow.note.content"
_NOTE_LENGTH = 4500
_MOST = 200
_SAME_SECONDS = 2.0


def find_parent(client: Any, experiment_id: str, commit: Commit) -> str:
    """The id of the run of the pipeline that this process belongs to, made where there is none."""
    identity = pipeline_identity()
    key = pipeline_key(identity)
    found = client.search_runs([experiment_id], f"tags.`{_KEY}` = '{key}'", max_results=1)
    if found:
        return found[0].info.run_id
    tags = {
        _KEY: key,
        "wrinklefree.pipeline": storable(identity),
        _NOTE: pipeline_note(commit),
        **commit.tags(),
    }
    run = client.create_run(experiment_id, tags=tags, run_name=pipeline_name(commit))
    return run.info.run_id


def settle_parent(client: Any, experiment_id: str, parent_id: str, ended: str = "") -> None:
    """Close the pipeline's run with the worst that its stages have, and note which one ended.

    A stage's run, which has parts of its own, is closed by the stage.
    """
    tags = client.get_run(parent_id).data.tags
    if _KEY not in tags:
        return
    outcome = "FINISHED"
    for status in ("KILLED", "FAILED"):
        query = f"tags.`{PARENT}` = '{parent_id}' and attributes.status = '{status}'"
        if client.search_runs([experiment_id], query, max_results=1):
            outcome = status
    client.set_terminated(parent_id, outcome)
    note = tags.get(_NOTE, "")
    if ended and len(note) < _NOTE_LENGTH:
        separator = ", " if "\n\nEnded: " in note else "\n\nEnded: "
        client.set_tag(parent_id, _NOTE, f"{note}{separator}{ended}")


def process_tags() -> dict[str, str]:
    """Tags by which a later stage tells whether the process of a run still exists."""
    process = psutil.Process()
    return {
        "wrinklefree.host": _host(),
        "wrinklefree.pid": str(process.pid),
        "wrinklefree.pid.created": str(process.create_time()),
    }


def close_orphans(client: Any, experiment_id: str) -> None:
    """Close the runs of this host that are still open though their process is gone."""
    query = f"attributes.status = 'RUNNING' and tags.`wrinklefree.host` = '{_host()}'"
    for run in client.search_runs([experiment_id], query, max_results=_MOST):
        if not _process_exists(run.data.tags):
            close_orphan(client, run)


def close_orphan(client: Any, run: Any) -> None:
    """Close a run as killed, and its pipeline's with it."""
    tags = run.data.tags
    text = f"process {tags.get('wrinklefree.pid')} was gone at {time.strftime('%Y-%m-%d %H:%M')}"
    client.set_tag(run.info.run_id, "wrinklefree.orphan", text)
    client.set_terminated(run.info.run_id, "KILLED")
    if parent_id := tags.get(PARENT):
        ended = f"{run.info.run_name} (killed)"
        settle_parent(client, run.info.experiment_id, parent_id, ended)


def _process_exists(tags: dict[str, str]) -> bool:
    try:
        process = psutil.Process(int(tags["wrinklefree.pid"]))
        created = float(tags["wrinklefree.pid.created"])
        zombie = process.status() == psutil.STATUS_ZOMBIE
        return not zombie and abs(process.create_time() - created) < _SAME_SECONDS
    except psutil.NoSuchProcess:
        return False


def _host() -> str:
    """The host's name, with the number of the container's processes where they are apart."""
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        namespace = 0
    return f"{re.sub(r'[^a-zA-Z0-9.-]', '_', socket.gethostname())}-{namespace}"
