from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wrinklefree.errors import UserError
from wrinklefree.research import proxies
from wrinklefree.research.proxies import read_proxies, train_proxy
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.loop import Trainer

MakeStage = Callable[..., Stage]


def run(make_stage: MakeStage, mixture: Path, number: int = 0, **options: Any) -> dict[str, Any]:
    stage = make_stage("regmix_run", str(number), {"mixture": mixture}, **options)
    facts = train_proxy(stage)
    return json.loads((stage.folder / "run.json").read_text()) | {"facts": facts}


def loss(found: dict[str, Any], domain: str) -> float:
    return found["domains"][domain]["loss"]


def test_what_is_trained_on_more_is_learned_better(make_stage: MakeStage, mixture: Path):
    found = [run(make_stage, mixture, number) for number in range(4)]
    for domain in ("left", "right"):
        by_weight = sorted(found, key=lambda one: one["weights"][domain])
        assert loss(by_weight[-1], domain) < loss(by_weight[0], domain)
    # Never trained on, and measured all the same.
    assert all(one["weights"]["spare"] == 0 and loss(one, "spare") > 4 for one in found)


def test_a_run_repeats_to_the_byte_and_goes_on_where_it_was_killed(
    make_stage: MakeStage, mixture: Path, dies_at: Callable[[int], list[int]]
):
    whole = make_stage("regmix_run", "1", {"mixture": mixture})
    train_proxy(whole)
    killed = make_stage("regmix_run", "1", {"mixture": mixture})
    steps = dies_at(8)
    with pytest.raises(KeyboardInterrupt):
        train_proxy(killed)
    again = make_stage("regmix_run", "1", {"mixture": mixture}, work=killed.work)
    train_proxy(again)
    assert steps == [*range(8), *range(5, 12)], "it goes on from the checkpoint of step 5"
    for name in ("run.json", "history.jsonl"):
        assert (whole.folder / name).read_bytes() == (again.folder / name).read_bytes()


def test_all_runs_start_from_the_same_weights_and_read_a_domain_in_the_same_order(
    make_stage: MakeStage, mixture: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[Any, list[int]]] = []

    run_it = Trainer.run

    def recorded(trainer: Trainer) -> dict[str, Any]:
        batch = trainer.data.batch(0, 0, batch_size=64, micro_batches=1)
        mine = trainer.data.domains.index("left")
        rows = batch.source_documents_BT[batch.domain_B == mine][:10, 0].tolist()
        seen.append((trainer.model.get_input_embeddings().weight.detach().clone(), rows))
        return run_it(trainer)

    monkeypatch.setattr(Trainer, "run", recorded)
    for number in (0, 1):
        run(make_stage, mixture, number)
    (first, rows), (second, other_rows) = seen
    assert torch.equal(first, second)
    shared = min(len(rows), len(other_rows))
    assert shared and rows[:shared] == other_rows[:shared]


@pytest.mark.parametrize(
    "changes",
    [
        {"regmix.draw.floor": 0.3},
        {"regmix.model.layers": 2},
        {"regmix.training.steps": 6},
        {"regmix.measure.rows_per_domain": 2},
        {"seed": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_setting_changes_what_is_measured(
    make_stage: MakeStage, mixture: Path, changes: dict[str, Any]
):
    assert (
        run(make_stage, mixture)["domains"] != run(make_stage, mixture, changes=changes)["domains"]
    )


def test_threads_are_those_of_the_setting_and_of_the_process_afterwards(
    make_stage: MakeStage, mixture: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[int] = []

    def count_threads(trainer: Trainer) -> dict[str, Any]:
        seen.append(torch.get_num_threads())
        return {}

    monkeypatch.setattr(Trainer, "run", count_threads)
    before = torch.get_num_threads()
    for threads in (1, 2):
        run(make_stage, mixture, changes={"regmix.threads": threads})
    assert seen == [1, 2]
    assert torch.get_num_threads() == before


def test_a_mixture_that_would_repeat_a_domain_too_often_is_refused(
    make_stage: MakeStage, mixture: Path
):
    # 200 rows of each domain, at most four times: 2,000 rows of two domains are too many.
    changes = {"regmix.training.steps": 500}
    with pytest.raises(UserError, match=r"times, more than mixture.max_repetition 4"):
        run(make_stage, mixture, changes=changes)


def test_runs_that_were_made_differently_are_not_compared(
    make_stage: MakeStage, as_artifact: Callable[..., Path], mixture: Path
):
    folders = {}
    for number in (0, 1):
        stage = make_stage("regmix_run", str(number), {"mixture": mixture})
        facts = train_proxy(stage)
        folders[number] = as_artifact(stage, facts)
    found = read_proxies(folders)
    assert found.weights_ND.shape == found.losses_ND.shape == (2, 3)
    assert found.tokens > 0 and found.parameters > 0
    for what, other in (("inputs", {"mixture": "other"}), ("settings", {})):
        as_artifact(stage, facts, **{what: other})
        with pytest.raises(UserError, match=f"1 was made with other {what} than .*0, so"):
            read_proxies(folders)


def test_too_few_held_out_documents_are_refused_before_the_training(
    make_stage: MakeStage, mixture: Path, monkeypatch: pytest.MonkeyPatch
):
    held_out = proxies.HeldOutData

    class Short(held_out):
        def batches(self, domain: str, *, rows: int, batch_size: int) -> Any:
            return super().batches(domain, rows=1, batch_size=1)

    monkeypatch.setattr(proxies, "HeldOutData", Short)
    monkeypatch.setattr(Trainer, "run", lambda self: pytest.fail("trained"))
    with pytest.raises(UserError, match="takes are from 1 document, expected 2 or more"):
        run(make_stage, mixture)
