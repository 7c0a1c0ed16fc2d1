"""Where tracking goes: the MLflow server that is named, or a database in the project's folder."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from pathlib import Path
from typing import Any

EXPERIMENT = "wrinklefree"
_VARIABLE = "MLFLOW_TRACKING_URI"
_SQLITE = "sqlite:///"
_LOCK_SECONDS = 5.0
_LOGGED = {
    "mlflow": logging.WARNING,
    "alembic": logging.WARNING,
    # What these report is raised as well, and said by us in a line.
    "mlflow.store.db": logging.CRITICAL,
    "urllib3.connectionpool": logging.ERROR,
}
_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED")
_SERVER_FAULT = 500


class StoreError(Exception):
    """The store can't be used as it is; the message says why and what to do."""


def project_folder() -> Path:
    """The current folder, or the project that it is a temporary copy of.

    DVC runs ``dvc exp run --temp`` and queued experiments in copies below the project's
    ``.dvc/tmp/exps``, and removes them afterwards.
    """
    current = Path.cwd()
    for folder in current.parents:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    return current


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or a SQLite file in the project folder."""
    given = os.environ.get(_VARIABLE, "").strip()
    return given or f"{_SQLITE}{project_folder() / 'mlflow.db'}"


def lock_file() -> Path:
    """Held while a stage starts or ends its run: MLflow can't make a database in two processes."""
    return project_folder() / "work" / "locks" / "mlflow.lock"


def load_mlflow() -> type[Any]:
    """The class of clients. The import takes seconds, so it comes before others have to wait."""
    # A dead server must not hold up a stage: one retry, ten seconds.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name, level in _LOGGED.items():
        logging.getLogger(name).setLevel(level)
    from mlflow import MlflowClient

    return MlflowClient


def open_store(client_class: type[Any]) -> tuple[Any, str]:
    """A client, and the id of the experiment, which is made where it is missing.

    Takes the lock of :func:`lock_file` for granted.

    Raises
    ------
    StoreError : the SQLite file can't be read and written.
    """
    uri = tracking_uri()
    if uri.startswith(_SQLITE) and uri != _SQLITE:
        _check_sqlite(Path(uri.removeprefix(_SQLITE).partition("?")[0]))
    client = client_class(uri)
    if experiment := client.get_experiment_by_name(EXPERIMENT):
        return client, experiment.experiment_id
    if os.environ.get(_VARIABLE, "").strip():
        return client, client.create_experiment(EXPERIMENT)
    artifacts = (project_folder() / "mlartifacts").as_uri()
    return client, client.create_experiment(EXPERIMENT, artifacts)


def is_outage(error: Exception) -> bool:
    """Whether the store may take later what it did not take now."""
    status = getattr(error, "get_http_status_code", None)  # of MLflow's exceptions
    if status:
        return status() >= _SERVER_FAULT
    cause = getattr(error, "orig", error)  # SQLAlchemy's exceptions wrap SQLite's
    return getattr(cause, "sqlite_errorname", None) in _BUSY


def _check_sqlite(file: Path) -> None:
    """Write and take it back. MLflow would try for two minutes to read what can't be read."""
    if file.is_dir():
        raise StoreError(f"{file} is a folder; move it away or set {_VARIABLE}")
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=_LOCK_SECONDS)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE wrinklefree_writes (x)")
            connection.rollback()
    except sqlite3.Error as error:
        if is_outage(error):
            raise
        raise StoreError(
            f"{file}: {error}; make it a SQLite file that you can write, move it away"
            f" or set {_VARIABLE}"
        ) from error
