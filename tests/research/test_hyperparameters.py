from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from wrinklefree.config.load import read_settings
from wrinklefree.errors import UserError
from wrinklefree.evaluate.history import read_history
from wrinklefree.models.dense import build_scratch
from wrinklefree.models.folder import save_model
from wrinklefree.models.settings import ModelSettings
from wrinklefree.models.transforms import ternary
from wrinklefree.research import hyperparameters
from wrinklefree.research.hyperparameter_settings import laid, nested
from wrinklefree.research.hyperparameter_trials import open_study
from wrinklefree.research.hyperparameters import search_hyperparameters, table_text
from wrinklefree.schema.load import overlay, read_yaml
from wrinklefree.tracking.runs import StageRun
from wrinklefree.tracking.stage import Stage
from wrinklefree.tracking.store import tracking_uri
from wrinklefree.train.loop import Trainer
from wrinklefree.train.stage2 import continue_pretraining
from wrinklefree.train.stage2_settings import Stage2Settings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:sqlalchemy")
PARAMS = Path(__file__).parents[2] / "params.yaml"
LR = "optimizer.adamw.lr"
STEPS = 6
GOOD = [0.02, 0.03, 0.04, 0.05, 0.06]
"""Rates that differ by so little that none is much worse."""

Make = Callable[..., Stage]


@pytest.fixture(scope="module")
def student(
    tokenizer: Path, shape: ModelSettings, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("student")
    model, model_format = build_scratch(shape, 300, 32, 0, seed=3), ternary()
    model_format.apply(model)
    save_model(folder, model, model_format, tokenizer)
    return folder


@pytest.fixture
def make(make_stage: Make, student: Path, mixture: Path) -> Make:
    """``make(ranges, work, changes, **search)``: a stage of few and short trials."""

    def stage(
        ranges: dict[str, Any] | None = None,
        work: Path | None = None,
        changes: dict[str, Any] | None = None,
        **search: Any,
    ) -> Stage:
        settings = {
            "ranges": ranges or {LR: {"low": 1e-3, "high": 0.1, "log": True}},
            "trials": 3,
            "workers": 1,
            "threads": 1,
            "evaluations": 3,
            "rows_per_domain": 4,
        }
        everything = {"stage2.steps": STEPS, "search": settings | search} | (changes or {})
        inputs = {"model": student, "mixture": mixture}
        return make_stage("search", None, inputs, everything, work)

    return stage


def searched(stage: Stage) -> dict[str, Any]:
    search_hyperparameters(stage)
    return json.loads((stage.folder / "search.json").read_text())


def values(found: dict[str, Any], path: str = LR) -> list[Any]:
    return [trial["values"][path] for trial in found["trials"]]


def files(stage: Stage) -> dict[str, bytes]:
    found = (path for path in stage.folder.rglob("*") if path.is_file())
    return {str(path.relative_to(stage.folder)): path.read_bytes() for path in found}


def test_the_best_trial_is_a_training_of_stage_2_with_the_values_of_the_preset(
    make: Make, make_stage: Make
):
    stage = make()
    found = searched(stage)
    losses = [trial["loss"] for trial in found["trials"]]
    assert found["best"] == losses.index(min(losses)) and len(set(losses)) == 3
    assert found["present"] == losses[0] and values(found)[0] == 0.01, "stage 2's own come first"
    assert set(files(stage)) == {
        "search.json", "best.yaml", "table.txt", "table.html", "plots/values.svg",
        "plots/trials.svg",
    }  # fmt: skip
    preset = read_yaml(stage.folder / "best.yaml")
    best = values(found)[found["best"]]
    assert preset == {"stage2": {"optimizer": {"adamw": {"lr": best}}}}
    measured = {"evaluate_interval": STEPS, "evaluate_rows_per_domain": 4}
    settings = overlay(overlay(stage.settings, preset), {"stage2": measured})
    alone = replace(make_stage("search", None, stage.inputs), settings=settings)
    continue_pretraining(alone)
    assert read_history(alone.folder).series("held_out/loss")[-1] == min(losses)


def test_the_preset_is_laid_over_params(make: Make):
    ranges = {"optimizer.adamw.eps": {"low": 1e-9, "high": 1e-6, "log": True}}
    stage = make(ranges)
    found = searched(stage)
    parameters = read_settings(PARAMS, stage.folder / "best.yaml")
    best = values(found, "optimizer.adamw.eps")[found["best"]]
    assert parameters["stage2"]["optimizer"]["adamw"]["eps"] == best


def test_a_process_alone_repeats_its_trials_to_the_byte(make: Make):
    ranges = {
        LR: {"low": 1e-3, "high": 0.1, "log": True},
        "schedule.warmup_steps": {"low": 1, "high": 4},
        "schedule.kind": {"choices": ["cosine", "linear"]},
    }
    stages = [make(ranges), make(dict(reversed(ranges.items()))), make(ranges, changes={"seed": 2})]
    first, _, other = (searched(stage) for stage in stages)
    assert files(stages[0]) == files(stages[1])
    assert values(first)[1:] != values(other)[1:]
    warmups = values(first, "schedule.warmup_steps")
    assert all(type(steps) is int and 1 <= steps <= 4 for steps in warmups)
    kinds = {kind for found in (first, other) for kind in values(found, "schedule.kind")}
    assert kinds == {"cosine", "linear"}
    assert max(map(len, table_text(first).splitlines())) <= 80
    many = [trial | {"trial": number} for number, trial in enumerate(first["trials"] * 22)]
    said = " ".join(table_text(first | {"trials": many[:22]}).split())
    assert "The other 2, which were worse, are in search.json." in said


def test_a_trial_that_is_hopeless_is_stopped_where_five_others_are_better(make: Make):
    stage = make({LR: {"low": 1e-5, "high": 0.1, "log": True}}, trials=7)
    with open_study(stage.work) as study:
        for rate in (1e-5, *GOOD, 2e-5):
            study.enqueue_trial({LR: rate})
    trials = searched(stage)["trials"]
    hopeless, *good, planted = trials
    assert hopeless["state"] == "complete", "with none to compare with"
    assert all(trial["steps"] == STEPS for trial in good)
    assert (planted["state"], planted["steps"]) == ("pruned", 4)
    assert planted["loss"] == planted["held_out"]["4"] > max(t["held_out"]["4"] for t in good)


def test_models_are_compared_from_where_they_are_ternary(make: Make):
    ranges = {"lambda_warmup.warmup_steps": {"choices": [0, 4]}}
    found = searched(make(ranges, evaluations=STEPS, trials=4, changes={"seed": 5}))
    warmup = values(found, "lambda_warmup.warmup_steps")
    assert set(warmup) == {0, 4}
    for steps, trial in zip(warmup, found["trials"], strict=True):
        assert list(map(int, trial["held_out"])) == list(range(1 + steps, STEPS + 1))


def test_a_training_that_a_check_stops_is_a_result_with_its_reason(make: Make):
    stage = make({LR: {"low": 1e-30, "high": 1e-29, "log": True}})
    with pytest.raises(
        UserError, match="none of 3 trials was trained to the end: 13 of 13 parameters did"
    ):
        searched(stage)
    stage = make({LR: {"low": 1e-30, "high": 0.1, "log": True}}, trials=2)
    with open_study(stage.work) as study:
        study.enqueue_trial({LR: 1e-30})
        study.enqueue_trial({LR: 0.01})
    stopped, whole = searched(stage)["trials"]
    assert (stopped["state"], whole["state"]) == ("stopped", "complete")
    assert "did not train" in stopped["why"] and whole["why"] is None
    assert "stopped" in (stage.folder / "table.txt").read_text()


def test_a_killed_search_goes_on_and_ends_with_the_same_bytes(
    make: Make, dies_at: Callable[[int], list[int]]
):
    whole, killed = make(), make()
    searched(whole)
    steps = dies_at(STEPS + 4)  # in the second trial, behind a checkpoint after two steps
    with pytest.raises(KeyboardInterrupt):
        searched(killed)
    again = make(work=killed.work)
    searched(again)
    every = list(range(STEPS))
    assert steps == [*every, 0, 1, 2, 3, 2, 3, 4, 5, *every]
    assert files(whole) == files(again)
    assert {path.name for path in again.work.iterdir()} == {"study.db", "study.lock"}


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_when_one_of_several_processes_is_killed_the_others_end_and_nothing_is_done_twice(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    stage = make(workers=2, trials=6, changes={"stage2.steps": 60})

    def kill_one() -> None:
        until((stage.work / "trial_0003").is_dir)  # so that another has ended
        spawned = (p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline()))
        os.kill(next(spawned).pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(UserError, match=r"was killed, .* lower search.workers"):
        searched(stage)
    killer.join()
    with open_study(stage.work) as study:
        before = {t.number: t.value for t in study.get_trials() if t.state.is_finished()}
    assert before
    again = make(work=stage.work, trials=6, changes={"stage2.steps": 60})
    found = searched(again)
    assert [trial["trial"] for trial in found["trials"]] == list(range(6))
    assert {number: found["trials"][number]["loss"] for number in before} == before
    logs = [Path(f"logs/search.worker_{number}.log").read_text() for number in (0, 1)]
    assert all("trial" in log for log in logs), "both have trained"


def test_trials_are_runs_below_that_of_the_stage(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    stage = make()
    run = StageRun("search", stage.work)
    found = searched(replace(stage, run=run))
    client = MlflowClient(tracking_uri())
    assert client.get_run(run.id).info.status == "RUNNING", "no trial ends it"
    run.finish("FINISHED")
    experiment = client.get_run(run.id).info.experiment_id
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run.id}'")
    by_name = {one.info.run_name: one for one in runs}
    for trial in found["trials"]:
        one = by_name[f"search.trial_{trial['trial']:04}"]
        assert one.data.params == {LR: str(trial["values"][LR])}
        assert one.data.tags["wrinklefree.trial"] == trial["state"]
        assert one.info.status == "FINISHED"
        logged = client.get_metric_history(one.info.run_id, "held_out/loss")
        losses = {str(metric.step): metric.value for metric in logged}
        assert losses.items() >= trial["held_out"].items() and len(trial["held_out"]) > 1


def test_every_setting_has_its_effect(make: Make):
    def second_value(found: dict[str, Any]) -> Any:
        return values(found)[1]

    changes: list[tuple[dict[str, Any], Callable[[dict[str, Any]], Any]]] = [
        ({"trials": 3}, lambda found: len(found["trials"])),
        ({"evaluations": 6}, lambda found: len(found["trials"][0]["held_out"])),
        ({"rows_per_domain": 2}, lambda found: found["trials"][0]["loss"]),
        ({"ranges": {LR: {"low": 1e-3, "high": 0.1}}}, second_value),
        ({"ranges": {LR: {"low": 2e-3, "high": 0.1, "log": True}}}, second_value),
        ({"ranges": {LR: {"low": 1e-3, "high": 0.2, "log": True}}}, second_value),
        ({"ranges": {LR: {"choices": [0.01, 0.02]}}}, second_value),
    ]
    found = searched(make(trials=2))
    for change, differs in changes:
        assert differs(searched(make(**{"trials": 2} | change))) != differs(found), change


def test_threads_and_processes_are_those_of_the_settings(
    make: Make, monkeypatch: pytest.MonkeyPatch
):
    seen = []
    take_step = Trainer._step

    def step(trainer: Trainer, number: int) -> Any:
        seen.append(torch.get_num_threads())
        return take_step(trainer, number)

    monkeypatch.setattr(Trainer, "_step", step)
    searched(make(threads=2, trials=1))
    assert set(seen) == {2}

    def processes(count: int, *_: Any) -> Any:
        raise InterruptedError(count)

    monkeypatch.setattr(hyperparameters, "child_processes", processes)
    for workers, trials, count in ((3, 8, 3), (3, 2, 2)):
        with pytest.raises(InterruptedError, match=str(count)):
            searched(make(workers=workers, trials=trials))


def test_ranges_of_what_is_not_chosen_do_not_count(make: Make):
    other = {"optimizer.muon.lr": {"low": 1e-3, "high": 1e-2}}
    taught = {"distillation.temperature": {"low": 1.0, "high": 2.0}}
    with pytest.raises(UserError, match="none of which counts: stage2 has optimizer.name adamw"):
        searched(make(other | taught))
    both = make(other | taught | {LR: {"low": 1e-3, "high": 0.1}})
    assert all(set(trial["values"]) == {LR} for trial in searched(both)["trials"])


def test_a_range_that_does_not_go_together_with_the_rest_is_refused_before_any_training(
    make: Make, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Trainer, "run", lambda trainer: pytest.fail("trained"))
    stage = make({"schedule.warmup_steps": {"low": 1, "high": 9}})
    with pytest.raises(UserError, match="with schedule.warmup_steps 9: .* warmup must end before"):
        searched(stage)


def test_stage_2_outside_of_the_ranges_is_no_trial(make: Make):
    found = searched(make({LR: {"low": 0.02, "high": 0.1}}, trials=2))
    assert min(values(found)) >= 0.02 and found["present"] is None


def test_values_are_laid_over_all_that_stage_2_has():
    own = Stage2Settings(**read_yaml(PARAMS)["stage2"])
    found = laid(own, {"optimizer.muon.lr": 0.5, "clipping.zclip.ema_decay": 0.5})
    assert (found.optimizer.muon.lr, found.clipping.zclip.ema_decay) == (0.5, 0.5)
    assert laid(found, {"optimizer.muon.lr": own.optimizer.muon.lr}).optimizer == own.optimizer
    assert nested({"a.b": 1, "a.c.d": 2, "e": 3}) == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
