"""A real Slurm on this host: a controller and two nodes on loopback, without slurmdbd."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PACKAGES = "slurmctld slurmd slurm-client"
CPUS = 2
"""Of each of the two nodes."""
_TOOLS = ("slurmctld", "slurmd", "sbatch", "srun", "scancel", "squeue", "sinfo", "setpriv")
_START_SECONDS = 60
_STOP_SECONDS = 20
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=10
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
GresTypes=gpu
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} RealMemory=16000
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} RealMemory=16000 \
Gres=gpu:1
PartitionName=cpu Nodes=node1,node2 Default=YES State=UP
PartitionName=gpu Nodes=node2 State=UP
"""


def missing() -> str:
    """Why there can be no cluster here; empty if there can."""
    if lacking := [tool for tool in _TOOLS if not shutil.which(tool, path=_path())]:
        return f"no {lacking[0]}: apt-get install --no-install-recommends {PACKAGES}"
    return "" if os.geteuid() == 0 else "slurmd must be root"


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Start the daemons, all their files in ``folder``; yields the environment of their users."""
    configuration = folder / "slurm.conf"
    environment = os.environ | {"SLURM_CONF": str(configuration), "PATH": _path()}
    _configure(folder, configuration)
    with ExitStack() as stack:
        for name, *command in (
            ("controller", "slurmctld", "-D", "-c", "-i"),
            ("node1", "slurmd", "-D", "-c", "-N", "node1"),
            ("node2", "slurmd", "-D", "-c", "-N", "node2"),
        ):
            output = stack.enter_context((folder / f"{name}.out").open("w"))
            # Ends with this process, however that ends.
            command = ["setpriv", "--pdeathsig", "TERM", *command]
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            stack.callback(_stop, process)
        stack.callback(_cancel_all, environment)
        _wait_for_nodes(folder, environment)
        # Snakemake's executor takes SLURM_CONF from the steps it starts, as if it were a job's.
        wrapper = folder / "bin" / "srun"
        wrapper.parent.mkdir()
        srun = shutil.which("srun", path=_path())
        wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={configuration} exec {srun} "$@"\n')
        wrapper.chmod(0o755)
        yield environment | {"PATH": f"{wrapper.parent}{os.pathsep}{environment['PATH']}"}


def _path() -> str:
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


def _configure(folder: Path, configuration: Path) -> None:
    for name in ("state", "node1", "node2"):
        (folder / name).mkdir()
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
    host = socket.gethostname().split(".")[0]
    configuration.write_text(
        _CONFIGURATION.format(folder=folder, host=host, ports=ports, cpus=CPUS)
    )
    (folder / "gres.conf").write_text("NodeName=node2 Name=gpu File=/dev/null\n")


def _wait_for_nodes(folder: Path, environment: dict[str, str]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while set(_output(["sinfo", "-h", "-N", "-o", "%N %t"], environment).splitlines()) != {
        "node1 idle",
        "node2 idle",
    }:
        logs = [path.read_text()[-1000:] for path in sorted(folder.glob("*.out"))]
        assert time.monotonic() < deadline, "\n".join(["Slurm does not start", *logs])
        time.sleep(0.5)


def _cancel_all(environment: dict[str, str]) -> None:
    subprocess.run(["scancel", "--user", "root"], env=environment, capture_output=True, check=False)
    deadline = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < deadline and _output(["squeue", "-h"], environment):
        time.sleep(0.5)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _output(command: list[str], environment: dict[str, str]) -> str:
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return result.stdout.strip()
