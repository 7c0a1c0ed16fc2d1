"""A file about the results of a run, put into MLflow beside them."""

from __future__ import annotations

from pathlib import Path

from wrinklefree.errors import UserError
from wrinklefree.tracking import store
from wrinklefree.tracking.artifact import read_manifest
from wrinklefree.tracking.locks import exclusive_lock
from wrinklefree.tracking.parents import OUTPUT_DIGEST, PARENT


def attach(file: Path, results: Path) -> str:
    """Log ``file`` to the run of the pipeline that made ``results``, and say where it is.

    It replaces a file of that name. The run is the newest whose stage wrote an artifact with the
    digest of ``results``.

    Raises
    ------
    UserError : there is no such file, no such artifact or no such run, or the store can't be used.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; make report writes report.html")
    digest = read_manifest(results).digest
    client_class = store.load_mlflow()
    try:
        with exclusive_lock(store.lock_file()):
            client, experiment_id = store.open_store(client_class)
    except store.StoreError as error:
        raise UserError(str(error)) from error
    query = f"tags.`{OUTPUT_DIGEST}` = '{digest}'"
    found = client.search_runs([experiment_id], query, max_results=1)
    if not found:
        raise UserError(
            f"{store.tracking_uri()}: no run there made {results} as it stands; it was tracked"
            " elsewhere, or not at all"
        )
    run_id = found[0].data.tags.get(PARENT, found[0].info.run_id)
    client.log_artifact(run_id, str(file))
    return f"{file} is an artifact of run {client.get_run(run_id).info.run_name} in MLflow"
