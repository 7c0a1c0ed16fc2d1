"""What a user of DVC expects of its commands, on a finished run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from workspace import HIDDEN, PROJECT, copy_run, dvc_accept, run

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

EXPERIMENT = "one-more-step"


def commit(folder: Path) -> None:
    run(folder, "git", "add", "--all")
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "run")


def as_json(folder: Path, *command: str) -> Any:
    return json.loads(run(folder, "dvc", *command, "--json"))


@pytest.fixture(scope="module")
def accepted(completed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that DVC knows, committed with its dvc.lock; research never ran."""
    folder = tmp_path_factory.mktemp("accepted") / "project"
    copy_run(completed, folder, "work/kept")
    research = ("control", "finetune", "synthesize", "search", "world_model", "regmix")
    others = ("regmix_run", "microanneal", "microanneal_run", "experiment", "experiments")
    others += ("architecture",)
    for name in (*research, *others):
        shutil.rmtree(folder / "research" / name)
    shutil.copy(PROJECT / ".dvcignore", folder)
    dvc_accept(folder)
    commit(folder)
    return folder


@pytest.fixture(scope="module")
def experiment(accepted: Path) -> Path:
    """The same after an experiment of the queue, its results in the workspace."""
    override = ("-S", "distill.ar.steps=5", "--name", EXPERIMENT)
    run(accepted, "dvc", "exp", "run", "--queue", *override, "evaluate")
    run(accepted, "dvc", "exp", "run", "--run-all")
    run(accepted, "dvc", "exp", "apply", EXPERIMENT)
    return accepted


def test_research_that_never_ran_is_neither_in_the_status_nor_missed_by_pull(
    accepted: Path, tmp_path: Path
):
    assert run(accepted, "dvc", "status") == "Data and pipelines are up to date.\n"
    clone, store = tmp_path / "clone", str(tmp_path / "store")
    run(accepted, "dvc", "push", "--quiet", "--remote", add_remote(accepted, store))
    run(tmp_path, "git", "clone", "--quiet", str(accepted), "clone")
    run(clone, "dvc", "pull", "--quiet", "--remote", add_remote(clone, store))
    assert (clone / "models" / "export" / "manifest.json").is_file()
    assert run(clone, "dvc", "status") == "Data and pipelines are up to date.\n"


def add_remote(folder: Path, store: str) -> str:
    run(folder, "dvc", "remote", "add", "--local", "store", store)
    return "store"


def test_who_asks_for_research_is_told_what_hides_it_and_can_have_it(accepted: Path):
    control = ["dvc", "repro", "--dry", "research/dvc.yaml:control"]
    assert "research/dvc.yaml' is dvc-ignored" in run(accepted, *control, check=False)
    ignored = accepted / ".dvcignore"
    before = ignored.read_text()
    run(accepted, "make", "dvc-research")
    try:
        assert ignored.read_text() == before[: before.index("# Who")] and HIDDEN in before
        assert "Running stage 'research/dvc.yaml:control'" in run(accepted, *control)
    finally:
        ignored.write_text(before)


def test_metrics_are_few_numbers(accepted: Path):
    (metrics,) = as_json(accepted, "metrics", "show")[""]["data"].values()
    numbers = [number for group in metrics["data"].values() for number in group.values()]
    assert {"loss", "recovered", "bits_per_byte", "acc"} == set(metrics["data"])
    assert len(numbers) == 12 + 2 and all(isinstance(number, float) for number in numbers)


def test_plots_show_the_loss_of_every_training_stage_and_lambda(accepted: Path):
    plots = as_json(accepted, "plots", "show")
    assert set(plots) == {"data"}, "no errors"
    stages = ("base", "stage2", "dlm", "distill_ar", "distill_dlm")
    curves = {f"results/curves/{stage}.csv" for stage in stages}
    assert set(plots["data"]) == curves | {"lambda of stage 2"}
    values = plots["data"]["lambda of stage 2"][0]["content"]["data"]["values"]
    assert [float(point["lambda"]) for point in values][0::7] == [0.0, 1.0]
    run(accepted, "dvc", "plots", "show")
    assert not run(accepted, "git", "status", "--porcelain", "dvc_plots")


def test_an_experiment_is_compared_by_its_metrics_its_settings_and_its_curves(experiment: Path):
    settings = as_json(experiment, "params", "diff")
    assert settings == {"params.yaml": {"distill.ar.steps": {"old": 4, "new": 5, "diff": 1}}}
    changed = as_json(experiment, "metrics", "diff")["results/metrics.json"]
    assert {name.split(".")[1] for name in changed} == {"distill_ar"}
    curve = as_json(experiment, "plots", "diff", "HEAD")["data"]["results/curves/distill_ar.csv"]
    steps: dict[str, int] = {}
    for part in curve:
        for point in part["content"]["data"]["values"]:
            steps[point["rev"]] = steps.get(point["rev"], 0) + 1
    assert steps == {"HEAD": 4, "workspace": 5}
    table = run(experiment, "dvc", "exp", "show", "--only-changed", "--csv").splitlines()
    assert len(table[0].split(",")) < 16 and "loss.distill_ar" in table[0]
    assert any(line.startswith(EXPERIMENT) and ",Success," in line for line in table)
