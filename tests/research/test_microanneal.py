from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from wrinklefree.errors import UserError
from wrinklefree.mixture.batch import Batch
from wrinklefree.mixture.loader import HeldOutData
from wrinklefree.models.dense import build_scratch
from wrinklefree.models.folder import save_model
from wrinklefree.models.settings import ModelSettings
from wrinklefree.models.transforms import InsertBitlinear, ModelFormat
from wrinklefree.research.anneals import anneal_arm
from wrinklefree.research.intervals import Difference
from wrinklefree.research.microanneal import compare_arms, table_text
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.loop import Trainer

ALL_LEFT = {"left": 1.0, "right": 0.0, "spare": 0.0}
ARM = "microanneal.arms.candidate"

MakeStage = Callable[..., Stage]
Anneal = Callable[..., Path]


@pytest.fixture(scope="module")
def base(tokenizer: Path, shape: ModelSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    model = build_scratch(shape, 300, 32, 0, seed=3)
    save_model(folder, model, ModelFormat(), tokenizer)
    return folder


@pytest.fixture
def anneal(
    make_stage: MakeStage, as_artifact: Callable[..., Path], mixture: Path, base: Path
) -> Anneal:
    """``anneal(arm, changes, ...)``: the artifact of an arm."""

    def make(arm: str, changes: dict[str, Any] | None = None, **origin: Any) -> Path:
        stage = make_stage("microanneal_run", arm, {"model": base, "mixture": mixture}, changes)
        return as_artifact(stage, anneal_arm(stage), **origin)

    return make


def verdicts(
    make_stage: MakeStage, present: Path, candidate: Path, changes: dict[str, Any] | None = None
) -> dict[str, Any]:
    stage = make_stage("microanneal", None, {"present": present, "candidate": candidate}, changes)
    compare_arms(stage)
    assert max(map(len, (stage.folder / "table.txt").read_text().splitlines())) <= 80
    return json.loads((stage.folder / "microanneal.json").read_text())


def test_two_identical_mixtures_differ_by_exactly_0_and_are_undecided(
    make_stage: MakeStage, anneal: Anneal
):
    weights = {"left": 0.5, "right": 0.5, "spare": 0.0}  # as of the mixture, which `present` takes
    arms = anneal("present"), anneal("candidate", {f"{ARM}.weights": weights})
    found = verdicts(make_stage, *arms)
    assert set(found["differences"]) == {"target", "left", "right", "spare"}
    for difference in found["differences"].values():
        assert difference["per_seed"] == [0.0, 0.0]
        assert (difference["low"], difference["high"]) == (0.0, 0.0)
        assert difference["verdict"] == "undecided"


def test_a_better_mixture_is_called_better_where_it_is_and_worse_where_it_is_not(
    make_stage: MakeStage, anneal: Anneal
):
    more = {"microanneal.seeds": [0, 1, 2, 3, 4], "microanneal.training.steps": 12}
    arms = anneal("present", more), anneal("candidate", {**more, f"{ARM}.weights": ALL_LEFT})
    found = verdicts(make_stage, *arms)["differences"]
    assert (found["left"]["verdict"], found["right"]["verdict"]) == ("better", "worse")
    assert found["target"]["mean"] == pytest.approx(
        (found["left"]["mean"] + found["right"]["mean"]) / 2
    )
    for target, verdict in (({"left": 1.0}, "better"), ({"right": 2.0}, "worse")):
        changes = {"microanneal.verdict.target": target}
        assert verdicts(make_stage, *arms, changes)["differences"]["target"]["verdict"] == verdict
    wide = verdicts(make_stage, *arms, {"microanneal.verdict.confidence": 0.9999})["differences"]
    assert wide["left"]["low"] < found["left"]["low"]


def test_the_table_fits_a_terminal_whatever_a_domain_is_called():
    found = dict.fromkeys(["target", "x" * 60], Difference(-0.5, -1.0, -0.1, 0.1, 0.1, [-0.5]))
    text = table_text(found, 0.95, seeds=1, documents=dict.fromkeys(found, 1000))
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    "changes",
    [
        {"microanneal.seeds": [0, 2]},
        {"microanneal.training.steps": 5},
        {"microanneal.measure.rows_per_domain": 3},
        {"seed": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_setting_changes_what_is_measured(anneal: Anneal, changes: dict[str, Any]):
    seeds = [
        json.loads((anneal("present", c) / "arm.json").read_text())["seeds"] for c in ({}, changes)
    ]
    assert seeds[0] != seeds[1]


def test_threads_are_those_of_the_setting(
    make_stage: MakeStage, mixture: Path, base: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = []
    monkeypatch.setattr(Trainer, "run", lambda trainer: seen.append(torch.get_num_threads()))
    for threads in (1, 2):
        changes = {"microanneal.threads": threads}
        inputs = {"model": base, "mixture": mixture}
        anneal_arm(make_stage("microanneal_run", "present", inputs, changes))
    assert seen == [1, 1, 2, 2]


def test_the_learning_rate_ends_at_0_and_seeds_have_metrics_of_their_own(
    make_stage: MakeStage, mixture: Path, base: Path
):
    inputs = {"model": base, "mixture": mixture}
    stage = make_stage("microanneal_run", "present", inputs)
    anneal_arm(stage)
    logged = {name for _, metrics in stage.run.metrics for name in metrics}  # pyright: ignore
    for seed in (0, 1):
        lines = (stage.folder / f"seed-{seed}" / "history.jsonl").read_text().splitlines()
        rates = [json.loads(line)["train/learning_rate"] for line in lines]
        assert len(rates) == 4 and rates[0] == max(rates) and rates[-1] <= rates[0] / 3
        assert f"seed_{seed}/train/loss" in logged


def test_a_killed_arm_goes_on_and_ends_with_the_same_bytes(
    make_stage: MakeStage, mixture: Path, base: Path, dies_at: Callable[[int], list[int]]
):
    inputs = {"model": base, "mixture": mixture}
    whole = make_stage("microanneal_run", "present", inputs)
    anneal_arm(whole)
    killed = make_stage("microanneal_run", "present", inputs)
    steps = dies_at(8)
    with pytest.raises(KeyboardInterrupt):
        anneal_arm(killed)
    again = make_stage("microanneal_run", "present", inputs, work=killed.work)
    anneal_arm(again)
    assert steps == [0, 1, 2, 3, 0, 1, 2, 3, 2, 3], "the first seed is done, the second half"
    assert (whole.folder / "arm.json").read_bytes() == (again.folder / "arm.json").read_bytes()


def test_the_order_in_which_weights_are_written_changes_no_byte(
    make_stage: MakeStage, mixture: Path, base: Path
):
    # One engine hands settings over sorted by name, the other as they stand in the file.
    weights = {"left": 0.7, "right": 0.3, "spare": 0.0}
    stages = []
    for names in (sorted(weights), sorted(weights, reverse=True)):
        changes = {f"{ARM}.weights": {name: weights[name] for name in names}}
        inputs = {"model": base, "mixture": mixture}
        stages.append(make_stage("microanneal_run", "candidate", inputs, changes))
        anneal_arm(stages[-1])
    for name in ("arm.json", "seed-0/history.jsonl", "seed-1/history.jsonl"):
        assert (stages[0].folder / name).read_bytes() == (stages[1].folder / name).read_bytes()


def test_arms_that_were_made_differently_are_not_compared(make_stage: MakeStage, anneal: Anneal):
    present = anneal("present")
    for changes, origin, what in (
        ({"microanneal.training.steps": 5}, {}, "settings"),
        ({}, {"inputs": {"model": "other"}}, "inputs"),
    ):
        candidate = anneal("candidate", changes, **origin)
        with pytest.raises(UserError, match=f"were made with other {what}, so their losses"):
            verdicts(make_stage, present, candidate)


def test_weights_that_do_not_fit_the_mixture_are_refused(anneal: Anneal):
    with pytest.raises(UserError, match="differ in spare"):
        anneal("candidate", {f"{ARM}.weights": {"left": 0.5, "right": 0.5}})


@pytest.fixture
def merge_documents(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """``merge_documents(n)``: so many held-out documents that follow each other count as one."""

    def merge(count: int) -> None:
        read = HeldOutData.batches

        def batches(data: HeldOutData, domain: str, **options: Any) -> Iterator[Batch]:
            for batch in read(data, domain, **options):
                documents_BT = batch.source_documents_BT // count
                yield replace(batch, source_documents_BT=documents_BT)

        monkeypatch.setattr(HeldOutData, "batches", batches)

    return merge


def test_rows_of_one_document_count_once(
    make_stage: MakeStage, anneal: Anneal, merge_documents: Callable[[int], None]
):
    merge_documents(4)
    arms = anneal("present"), anneal("candidate", {f"{ARM}.weights": ALL_LEFT})
    found = verdicts(make_stage, *arms)
    assert found["documents"] == dict.fromkeys(("left", "right", "spare"), 2), "of 4 rows"
    for domains in json.loads((arms[0] / "arm.json").read_text())["seeds"].values():
        assert {name: len(sums["nats"]) for name, sums in domains.items()} == found["documents"]


def test_a_domain_with_one_held_out_document_is_refused_before_any_training(
    anneal: Anneal, merge_documents: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
):
    trained = []
    monkeypatch.setattr(Trainer, "run", trained.append)
    merge_documents(100)
    with pytest.raises(UserError, match="held-out rows of domain left .* from 1 document"):
        anneal("candidate")
    assert trained == []


def test_a_domain_that_would_be_repeated_too_often_is_refused(anneal: Anneal):
    changes = {f"{ARM}.weights": ALL_LEFT, "microanneal.training.steps": 201}
    with pytest.raises(UserError, match="domain left has .* read 4.02 times"):
        anneal("candidate", changes)


def test_only_a_dense_model_is_annealed(
    make_stage: MakeStage, mixture: Path, tokenizer: Path, shape: ModelSettings, tmp_path: Path
):
    from wrinklefree.models.surgery import insert_bitlinear

    model = build_scratch(shape, 300, 32, 0, seed=3)
    insert_bitlinear(model)
    save_model(tmp_path / "ternary", model, ModelFormat().then(InsertBitlinear()), tokenizer)
    inputs = {"model": tmp_path / "ternary", "mixture": mixture}
    with pytest.raises(UserError, match="expected a dense model"):
        anneal_arm(make_stage("microanneal_run", "present", inputs))
