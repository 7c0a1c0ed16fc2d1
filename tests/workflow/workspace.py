"""A project folder in which both engines believe that everything has been run."""

from __future__ import annotations

import csv
import importlib
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

from dvc.cli import main as dvc_main
from dvc.dependency import ParamsDependency
from dvc.repo import Repo
from dvc.utils import strictyaml as dvc_strictyaml
from dvc.utils.serialize import _yaml as dvc_yaml
from snakemake.cli import main as snakemake_main

from wrinklefree.schema.load import read_yaml
from wrinklefree.tracking.code import folders_digest

PROJECT = Path(__file__).parents[2]
COPIED = (
    "Snakefile",
    "profiles",
    "workflow",
    "dvc.yaml",
    "research/dvc.yaml",
    "params.yaml",
    "params",
    "src",
    "data/README.md",
    "Makefile",
    ".dvcignore",
    ".dvc",
)
RESEARCH = (
    "control",
    "finetune",
    "synthesize",
    "search",
    "world_model",
    "regmix",
    "microanneal",
    "experiments",
    "architecture/moe",
    "architecture/hybrid",
    "architecture/depths",
)
TARGETS = ("all", *(f"research/{name}/manifest.json" for name in RESEARCH))
"""Everything that Snakemake can make."""
CHECKED = "data/params.checked"
"""The output of DVC's first stage, which tells that the settings are valid, whatever they are."""
ENVIRONMENT = os.environ | {
    **{"DVC_NO_ANALYTICS": "1", "PYTHONPATH": "src"},
    **{"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
}
"""Of commands in a project: they run its own code. Bytes depend on threads: each stage has one."""
SNAKEMAKE = ("snakemake", "--max-threads", "1")
"""Stages of one thread run beside each other, which takes less time than one after the other."""


HIDDEN = "/research/dvc.yaml"
"""The line of .dvcignore that ``make dvc-research`` removes."""


def copy_project(folder: Path) -> None:
    """Copy what the engines read, without anything that was produced; DVC sees the research."""
    for name in COPIED:
        source = PROJECT / name
        if source.is_symlink():
            (folder / name).symlink_to(source.readlink())
        elif source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "tmp", "cache", "*.egg-info")
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(source, folder / name)
    run(folder, "make", "dvc-research")
    shutil.copy(PROJECT / ".gitignore", folder)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)


def copy_downloads(folder: Path) -> None:
    """Copy the packages that an earlier run here has downloaded; they are checked when used."""
    downloads = PROJECT / "work" / "downloads"
    if downloads.is_dir():
        shutil.copytree(downloads, folder / "work" / "downloads")


def copy_run(completed: Path, folder: Path, *without: str) -> None:
    """Copy a finished run, but for its downloads, its tracking and the paths ``without``.

    Times are kept, by which Snakemake judges; the tracking database has absolute paths.
    """
    left_out = {
        completed / path for path in ("work/downloads", "mlflow.db", "mlartifacts", *without)
    }

    def ignored(parent: str, names: list[str]) -> set[str]:
        return {name for name in names if Path(parent, name) in left_out}

    shutil.copytree(completed, folder, symlinks=True, ignore=ignored)


def run(
    folder: Path, *command: str, check: bool = True, environment: dict[str, str] = ENVIRONMENT
) -> str:
    """Output of a command, both streams."""
    result = subprocess.run(
        command,
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        check=False,
    )
    assert not check or result.returncode == 0, f"{' '.join(command)}\n{result.stdout}"
    return result.stdout


@contextmanager
def forked_stages() -> Iterator[dict[str, str]]:
    """The environment in which ``python`` forks stages (forked_python.py)."""
    script, real = Path(__file__).with_name("forked_python.py"), shlex.quote(sys.executable)
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # paths of sockets are short
        folder = Path(name)
        python, address = folder / "python", folder / "socket"
        python.write_text(f'#!/bin/sh\nexec {real} -I -S {shlex.quote(str(script))} "$@"\n')
        python.chmod(0o755)
        environment = ENVIRONMENT | {"FORKED_PYTHON": str(address)}
        command = [sys.executable, "-P", str(script), "serve"]
        server = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)
        try:
            while not address.exists():
                assert server.poll() is None, "the server of stages ended; see its errors above"
                time.sleep(0.01)
            yield environment | {"PATH": os.pathsep.join([name, environment["PATH"]])}
        finally:
            server.kill()
            server.wait()


def run_forked(folder: Path, main: Callable[[list[str]], Any], *arguments: str) -> str:
    """Output of a command line whose ``main`` is imported already: a second less than a process."""
    with tempfile.TemporaryFile("w+") as output:
        sys.stdout.flush()
        child = os.fork()
        if not child:
            status = 1
            try:
                os.chdir(folder)
                os.environ.update(ENVIRONMENT)
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - a descriptor
                sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
                sys.argv = [main.__module__.split(".")[0], *arguments]
                status = main(list(arguments)) or 0
            except SystemExit as left:
                status = left.code if isinstance(left.code, int) else int(left.code is not None)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        text = output.read()
    assert status == 0, f"{arguments}\n{text}"
    return text


def pretend_everything_ran(folder: Path) -> None:
    """Make an artifact for every output and have both engines record it."""
    for output in dvc_outputs(folder).values():
        (folder / output).mkdir(parents=True)
        (folder / output / "manifest.json").write_text(f"{output}\n")
        record = folder / "provenance" / f"{output}.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text("{}\n")
    (folder / "results" / "metrics.json").write_text("{}\n")
    _import_and_digest_once()
    run_forked(folder, snakemake_main, "fetch", "--force", "--allowed-rules", "fetch")
    run_forked(folder, snakemake_main, *TARGETS, "--touch", "--forceall")
    dvc_accept(folder)


def dvc_accept(folder: Path, *stages: str) -> None:
    """Tell DVC that what stands in the folders is the result, as ``make dvc-accept`` does."""
    run(folder, "wrinklefree", "check", "--output", CHECKED)
    run_forked(folder, dvc_main, "commit", "--force", "--quiet", *stages)


def dvc_outputs(folder: Path) -> dict[str, str]:
    """The output folder of every DVC stage; its record of provenance comes second."""
    return {stage: outs[0] for stage, outs in _dvc_stages(folder).items()}


def snakemake_reruns(folder: Path, *options: str) -> dict[str, str]:
    """What Snakemake would run: the command of every job by its output folder."""
    _import_and_digest_once()
    dry_run = (*TARGETS, "--dry-run", "--printshellcmds")
    text = run_forked(folder, snakemake_main, *dry_run, *options)
    commands = re.findall(r"^Shell command: (.*--output (\S+))$", text, re.MULTILINE)
    return {output: command for command, output in commands}


def snakemake_graph(folder: Path) -> dict[str, set[str]]:
    """For the output folder of every job, the outputs of the jobs that read it directly."""
    _import_and_digest_once()
    text = run_forked(folder, snakemake_main, *TARGETS, "--detailed-summary")
    table = [line for line in text.splitlines() if "\t" in line]
    graph: dict[str, set[str]] = {}
    for row in csv.DictReader(table, delimiter="\t"):
        for read in filter(None, row["input-file(s)"].split(",")):
            of_job = graph.setdefault(read.removesuffix("/manifest.json"), set())
            of_job.add(row["output_file"].removesuffix("/manifest.json"))
    return graph


@cache
def _import_and_digest_once() -> None:
    """Do here what every start of Snakemake does again and a forked one then finds done."""
    for name in ("smart_open", "wrinklefree.config.load", "wrinklefree.engines.described"):
        importlib.import_module(name)
    for script in PROJECT.glob("workflow/scripts/*.py"):
        folders_digest(script, PROJECT / "src")


def dvc_reruns(folder: Path) -> set[str]:
    """Output folders of the stages that DVC would run: those that changed and all below them."""
    with _every_text_parsed_once(), Repo(str(folder)) as repo:
        status = repo.status()
    return dvc_reruns_after(folder, {address.split(":")[-1] for address in status})


def dvc_reruns_after(folder: Path, changed: set[str]) -> set[str]:
    """Output folders of the stages in ``changed`` and of all below them."""
    outputs, graph = _dvc_graph(folder, _instances(folder))
    return {outputs[stage][0] for stage in with_all_below(changed - {"check"}, graph)}


def with_all_below(names: set[str], graph: Mapping[str, Collection[str]]) -> set[str]:
    """``names`` and whatever can be reached from them; ``graph`` has what is below each."""
    found, pending = set(names), list(names)
    while pending:
        new = set(graph.get(pending.pop(), ())) - found
        found |= new
        pending += new
    return found


def dvc_reruns_of_settings(folder: Path) -> set[str]:
    """:func:`dvc_reruns` where nothing but params.yaml has changed: files are not looked at."""
    return dvc_reruns_after(folder, dvc_changed_by_settings(folder))


def dvc_changed_by_settings(folder: Path) -> set[str]:
    """Names of the stages that read a setting that has changed, and of those that are new."""
    with _every_text_parsed_once(), Repo(str(folder)) as repo:
        return {
            stage.addressing.split(":")[-1]
            for stage in repo.index.stages
            if stage.changed_stage()
            or any(dep.status() for dep in stage.deps if isinstance(dep, ParamsDependency))
        } - {"check"}


@contextmanager
def _every_text_parsed_once() -> Iterator[None]:
    """DVC parses params.yaml again for every stage, which is most of what ``dvc status`` does."""
    with (
        mock.patch.object(dvc_yaml, "parse_yaml", _parsed),
        mock.patch.object(dvc_strictyaml, "parse_yaml", _parsed),
    ):
        yield


def _parsed(text: str, path: str, typ: str = "safe") -> Any:
    return pickle.loads(_pickled(text, path)) if typ == "safe" else _parse(text, path, typ)


@lru_cache(maxsize=16)
def _pickled(text: str, path: str) -> bytes:
    return pickle.dumps(_parse(text, path))


_parse = dvc_yaml.parse_yaml


def _dvc_stages(folder: Path) -> dict[str, list[str]]:
    return _dvc_graph(folder, _instances(folder))[0]


@cache
def _dvc_graph(
    folder: Path, instances: tuple[str, ...]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Outputs of every stage, and the stages that depend on it directly.

    Both follow from the ``dvc.yaml`` files, which tests leave alone, and the names of what there is
    several of.
    """
    with Repo(str(folder)) as repo:
        graph = repo.index.graph.copy()  # edges point from a stage to what it depends on
        # After an edit of params.yaml it writes what it wrote before, and so reruns nothing.
        graph.remove_nodes_from([stage for stage in graph if stage.name == "check"])
        outputs = {stage.name: [out.def_path for out in stage.outs] for stage in graph}
        below = {stage.name: [other.name for other in graph.predecessors(stage)] for stage in graph}
    return outputs, below


def _instances(folder: Path) -> tuple[str, ...]:
    parameters = read_yaml(folder / "params.yaml")
    runs = map(str, parameters["regmix"]["runs"])
    architectures = parameters["architectures"]["each"]
    return (*parameters["sources"], *runs, *parameters["experiments"]["names"], *architectures)
