"""A ``python`` whose stages are forked from a process that has imported their libraries already.

A stage that computes with a model takes five seconds of a core to import torch, transformers and
MLflow, and a run has fifty stages. The server imports these once and nothing of the project: a
stage runs the code of the folder that it is started in, with that command's arguments, variables
and streams, and ends as a process of its own does. What is no stage is left to the real ``python``.

A stage outlives a command that is killed: tests that kill one start it without this.
"""

import gc
import importlib
import json
import multiprocessing.process
import os
import runpy
import signal
import socket
import sys
from pathlib import Path

STAGE = ["-P", "workflow/scripts/"]
LIBRARIES = (
    *("alembic.config", "matplotlib.pyplot", "mlflow.store.tracking.sqlalchemy_store", "psutil"),
    *("pyarrow.parquet", "pydantic", "pypi_simple", "requests", "ruamel.yaml", "scipy.stats"),
    *("torch.distributed.tensor", "transformers.modeling_utils", "transformers.loss.loss_utils"),
)
MESSAGE = 1 << 17
"""Bytes of a request at most."""


def ask(server: str, arguments: list[str]) -> int:
    """Exit status of a stage that the server runs for this process."""
    request = {"arguments": arguments, "folder": str(Path.cwd()), "variables": dict(os.environ)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(server)
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        return connection.recv(1)[0]


def serve(address: str) -> list[str]:
    """Answer requests for ever. Returns in the process of each stage, with its command line."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(address)
        server.listen(64)
        for name in LIBRARIES:
            importlib.import_module(name)
        sys.modules["sqlalchemy.orm"].configure_mappers()  # of MLflow's tables
        gc.freeze()  # so that a collection in a stage copies no page of what is imported
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who answer
        pytest, _ = os.getppid(), server.settimeout(5)
        while True:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                if os.getppid() != pytest:  # killed, it stopped nothing itself
                    sys.exit()
                continue
            if not os.fork():
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, streams, _, _ = socket.recv_fds(connection, MESSAGE, 3)
    if stage := os.fork():
        _, status = os.waitpid(stage, 0)
        connection.send(bytes([os.waitstatus_to_exitcode(status) % 256]))
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    return enter(**json.loads(request))


def enter(arguments: list[str], folder: str, variables: dict[str, str]) -> list[str]:
    """Make this process what the command would have started; returns script and arguments."""
    os.chdir(folder)
    multiprocessing.process.ORIGINAL_DIR = folder  # where processes of its own find the script
    os.environ.clear()
    os.environ.update(variables)
    of_project = [str(Path(path).resolve()) for path in variables["PYTHONPATH"].split(os.pathsep)]
    sys.path[:] = of_project + [path for path in sys.path if path not in of_project]
    return arguments[1:]


if __name__ == "__main__":
    address = os.environ["FORKED_PYTHON"]
    if sys.argv[1:] == ["serve"]:
        sys.argv = serve(address)
        runpy.run_path(sys.argv[0], run_name="__main__")
    elif sys.argv[1:2] == STAGE[:1] and sys.argv[2].startswith(STAGE[1]):
        sys.exit(ask(address, sys.argv[1:]))
    else:
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
