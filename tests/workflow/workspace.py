"""A project folder in which both engines believe that everything has been run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from dvc.repo import Repo

PROJECT = Path(__file__).parents[2]
COPIED = ("Snakefile", "workflow", "dvc.yaml", "params.yaml", "params", "src", ".dvcignore", ".dvc")
ENVIRONMENT = os.environ | {"DVC_NO_ANALYTICS": "1"}


def copy_project(folder: Path) -> None:
    """Copy what the engines read, without anything that was produced."""
    for name in COPIED:
        source = PROJECT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "tmp", "cache", "*.egg-info")
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            shutil.copy(source, folder / name)
    shutil.copy(PROJECT / ".gitignore", folder)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)


def run(folder: Path, *command: str, check: bool = True) -> str:
    """Output of a command, both streams."""
    result = subprocess.run(
        command,
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=ENVIRONMENT,
        check=False,
    )
    assert not check or result.returncode == 0, f"{' '.join(command)}\n{result.stdout}"
    return result.stdout


def pretend_everything_ran(folder: Path) -> None:
    """Make an artifact for every output and have both engines record it."""
    for output in dvc_outputs(folder).values():
        (folder / output).mkdir(parents=True)
        (folder / output / "manifest.json").write_text(f"{output}\n")
    (folder / "results" / "evaluation.json").write_text("{}\n")
    run(folder, "snakemake", "--cores", "1", "--touch", "--forceall", "all")
    run(folder, "dvc", "commit", "--force", "--quiet")


def dvc_outputs(folder: Path) -> dict[str, str]:
    """The output folder of every DVC stage."""
    return {stage: out for stage, (out,) in _dvc_stages(folder).items()}


def snakemake_reruns(folder: Path, *options: str) -> dict[str, str]:
    """What Snakemake would run: the command of every job by its output folder."""
    text = run(
        folder, "snakemake", "all", "--cores", "1", "--dry-run", "--printshellcmds", *options
    )
    commands = re.findall(r"^Shell command: (.*--output (\S+))$", text, re.MULTILINE)
    return {output: command for command, output in commands}


def dvc_reruns(folder: Path) -> set[str]:
    """Output folders of the stages that DVC would run: those that changed and all below them."""
    return dvc_reruns_after(folder, set(json.loads(run(folder, "dvc", "status", "--json"))))


def dvc_reruns_after(folder: Path, changed: set[str]) -> set[str]:
    """Output folders of the stages in ``changed`` and of all below them."""
    outputs = _dvc_stages(folder)
    graph = _dvc_graph(folder)
    changed, pending = set(changed), list(changed)
    while pending:
        for below in graph[pending.pop()]:
            if below not in changed:
                changed.add(below)
                pending.append(below)
    return {out for stage in changed for out in outputs[stage]}


def _dvc_stages(folder: Path) -> dict[str, list[str]]:
    with Repo(str(folder)) as repo:
        return {stage.name: [out.def_path for out in stage.outs] for stage in repo.index.stages}


def _dvc_graph(folder: Path) -> dict[str, list[str]]:
    """For every stage those that depend on it directly."""
    with Repo(str(folder)) as repo:
        graph = repo.index.graph  # edges point from a stage to what it depends on
        return {stage.name: [other.name for other in graph.predecessors(stage)] for stage in graph}
