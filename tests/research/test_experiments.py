from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from wrinklefree.errors import UserError
from wrinklefree.evaluate.history import History
from wrinklefree.mixture.batch import Batch
from wrinklefree.research import variants as variants_module
from wrinklefree.research.experiment import run_experiment
from wrinklefree.research.experiments import gather_experiments
from wrinklefree.research.interventions import round_to_bfloat16
from wrinklefree.research.registry import EXPERIMENTS, Claim, Experiment, Measure, Variant
from wrinklefree.research.variants import (
    Trials,
    gradient_spikes,
    measures_of,
    read_result,
    shifted_weights,
)
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.loop import Trainer

MakeStage = Callable[..., Stage]
ADAMW = {"optimizer": {"name": "adamw", "adamw": {"lr": 0.02, "allow_unusual_lr": True}}}
SLOW = {"optimizer": {"adamw": {"lr": 1e-5}}}
STUCK = {"optimizer": {"adamw": {"lr": 1e-30}}}


def tried(start: Any = "dense", **variants: Variant) -> Experiment:
    return Experiment(
        question="Is it better?",
        start=start,
        reference="reference",
        training=ADAMW,
        variants={"reference": Variant(), **variants},
        claims=(Claim("slow", "loss", -0.5, "seeds/000"),) if "slow" in variants else (),
        shown=("start_loss", "unmoved", "operations", "tokens_needed", "operations_needed"),
    )


@pytest.fixture
def experiment(
    make_stage: MakeStage, mixture: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Stage]:
    """``experiment(described, changes, work)``: its stage, run."""

    def run(described: Experiment, changes: dict[str, Any] | None = None, **options: Any) -> Stage:
        monkeypatch.setitem(EXPERIMENTS, "tried", described)
        stage = make_stage("experiment", "tried", {"mixture": mixture}, changes, **options)
        run_experiment(stage)
        return stage

    return run


@pytest.fixture
def gather(make_stage: MakeStage) -> Callable[..., dict[str, Any]]:
    """``gather(folder, changes)``: what ``experiments.json`` says of the experiment in a folder."""

    def run(folder: Path, changes: dict[str, Any] | None = None) -> dict[str, Any]:
        stage = make_stage("experiments", None, {"runs.tried": folder}, changes)
        gather_experiments(stage)
        assert max(map(len, (stage.folder / "table.txt").read_text().splitlines())) <= 80
        assert (stage.folder / "plots" / "tried.svg").is_file()
        assert (stage.folder / "plots" / "claims.svg").is_file()
        content = json.loads((stage.folder / "experiments.json").read_text())
        return content["experiments"]["tried"]

    return run


def test_a_worse_variant_is_called_worse_and_a_twin_undecided(
    experiment: Callable[..., Stage], gather: Callable[..., Any]
):
    folder = experiment(tried(slow=Variant(SLOW), twin=Variant())).folder
    found = gather(folder)
    variants = {name: variant["difference"] for name, variant in found["variants"].items()}
    assert variants["reference"] is None
    assert variants["slow"]["verdict"] == "worse" and variants["slow"]["low"] > 0.5
    assert variants["twin"]["verdict"] == "undecided" and variants["twin"]["mean"] == 0.0
    assert all(variant["seeds"] == [0, 1] for variant in found["variants"].values())
    (claim,) = found["claims"]
    assert claim["verdict"] == "refuted" and claim["low"] > 0
    measures = {name: variant["measures"] for name, variant in found["variants"].items()}
    assert measures["reference"]["tokens_needed"]["mean"] == 1.0
    assert measures["twin"]["tokens_needed"]["mean"] == pytest.approx(1.0)
    assert "tokens_needed" not in measures["slow"], "it never comes so low"
    assert measures["twin"]["operations_needed"]["mean"] == pytest.approx(1.0)
    wider = gather(folder, {"experiments.verdict.confidence": 0.999})
    assert wider["variants"]["slow"]["difference"]["low"] < variants["slow"]["low"]


def write_trainings(
    folder: Path, last_losses: dict[str, list[float]], changes: dict[str, Any] | None = None
) -> Path:
    """An experiment's artifact whose held-out curves fall straight to these losses of all seeds.

    ``changes``: to ``result.json`` of a training, by its folder.
    """
    seeds = {name: list(range(len(losses))) for name, losses in last_losses.items()}
    best = {name: name for name in seeds}
    content = {"schema": 1, "shares": {"left": 1.0}, "best": best, "seeds": seeds}
    folder.mkdir()
    (folder / "experiment.json").write_text(json.dumps(content))
    for name, losses in last_losses.items():
        for seed, last in enumerate(losses):
            training = folder / f"{name}-seed-{seed}"
            training.mkdir()
            steps = [
                {"step": n, "tokens": 100 * n, "held_out/loss": 5.0 - (5.0 - last) * n / 10}
                for n in range(1, 11)
            ]
            (training / "history.jsonl").write_text("".join(f"{json.dumps(s)}\n" for s in steps))
            documents = {"nats": [10 * last] * 3, "tokens": [10] * 3, "bytes": [20] * 3}
            result = {
                "schema": 1,
                "stopped": None,
                "tokens": 1000,
                "measures": {"loss": last, "operations": 1.0},
                "domains": {"left": documents},
            } | (changes or {}).get(training.name, {})
            (training / "result.json").write_text(json.dumps(result))
    return folder


@pytest.mark.parametrize(
    ("losses", "never", "verdict"),
    [
        ([1.0, 1.001, 0.999], 0, "confirmed"),
        ([1.0, 1.001, 4.0], 1, "undecided"),
        ([4.0, 4.0, 4.0], 3, "refuted"),
    ],
)
def test_a_seed_that_never_has_the_opponents_loss_speaks_against_a_claim(
    gather: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    losses: list[float],
    never: int,
    verdict: str,
):
    described = tried(quick=Variant())
    claims = (Claim("quick", "tokens_needed", -0.5, "seeds/003"),)
    monkeypatch.setitem(EXPERIMENTS, "tried", replace(described, claims=claims))
    folder = write_trainings(tmp_path / "made", {"reference": [3.0] * 3, "quick": losses})
    found = gather(folder)
    (claim,) = found["claims"]
    assert (claim["verdict"], claim["never"], claim["seeds"]) == (verdict, never, 3)
    reached = found["variants"]["quick"]["measures"].get("tokens_needed", {"seeds": 0})
    assert reached["seeds"] == 3 - never
    (table,) = (file.read_text() for file in tmp_path.rglob("table.txt"))
    assert ("0.5 (2/3)" in table) == (never == 1) and ("never in" in table) == bool(never)


def test_operations_needed_are_at_the_price_of_the_variant(
    gather: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(EXPERIMENTS, "tried", tried(cheap=Variant()))
    price = {"measures": {"loss": 3.0, "operations": 0.25}}
    changes = {f"cheap-seed-{seed}": price for seed in range(2)}
    losses = {"reference": [3.0, 3.0], "cheap": [3.0, 3.0]}
    found = gather(write_trainings(tmp_path / "made", losses, changes))
    measures = found["variants"]["cheap"]["measures"]
    assert measures["tokens_needed"]["mean"] == pytest.approx(1.0)
    assert measures["operations_needed"]["mean"] == pytest.approx(0.25)


def test_a_claim_about_the_loss_is_as_sure_as_seeds_and_documents_are(
    gather: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    described = replace(
        tried(quick=Variant()), claims=(Claim("quick", "loss", -0.15, "seeds/003"),), shown=()
    )
    monkeypatch.setitem(EXPERIMENTS, "tried", described)
    found = {}
    for name, nats in {"alike": [26.0, 27.0, 28.0], "apart": [10.0, 35.0, 36.0]}.items():
        documents = {"left": {"nats": nats, "tokens": [10] * 3, "bytes": [20] * 3}}
        losses = {"reference": [3.0] * 3, "quick": [2.69, 2.7, 2.71]}
        changes = {f"quick-seed-{seed}": {"domains": documents} for seed in range(3)}
        (found[name],) = gather(write_trainings(tmp_path / name, losses, changes))["claims"]
    assert found["alike"]["mean"] == pytest.approx(-0.1)
    assert found["apart"]["mean"] == pytest.approx(-0.1)
    # Of two degrees of freedom; the documents' luck is 1 nat of 10 tokens of 3 nats each.
    reach = 4.302652729911275 * 0.1 / 3.0 / math.sqrt(3)
    assert found["alike"]["high"] == pytest.approx(-0.1 + reach)
    assert found["alike"]["verdict"] == "confirmed"
    assert found["apart"]["verdict"] == "undecided" and found["apart"]["high"] > 0


def test_of_a_family_the_best_is_taken_and_only_finalists_have_all_seeds(
    experiment: Callable[..., Stage],
):
    rates = (1e-5, 1e-2, 1e-4, 1e-6)
    sweep = {
        f"s{index}": Variant({"optimizer": {"adamw": {"lr": rate}}}, family="sweep")
        for index, rate in enumerate(rates)
    }
    others = {f"o{n}": Variant({"optimizer": {"adamw": {"lr": 10**-n}}}) for n in (4, 5)}
    stage = experiment(tried(**sweep, **others), {"experiments.runs.steps": 10})
    content = json.loads((stage.folder / "experiment.json").read_text())
    assert content["best"]["sweep"] == "s1"
    all_seeds = {name for name, seeds in content["seeds"].items() if seeds == [0, 1]}
    assert all_seeds == {"reference", "s1", "o4"}


def test_a_training_that_its_checks_stop_is_reported(
    experiment: Callable[..., Stage], gather: Callable[..., Any]
):
    found = gather(experiment(tried(stuck=Variant(STUCK))).folder)["variants"]["stuck"]
    assert "did not train" in found["stopped"] and found["difference"] is None
    assert found["measures"] == {} and found["seeds"] == []


@pytest.mark.parametrize("name", ["reference", "quick"])
def test_what_a_stopped_training_measured_is_no_result(
    gather: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    claims = (Claim("quick", "step_variance", -0.5, "seeds/000"),)
    monkeypatch.setitem(
        EXPERIMENTS, "tried", replace(tried(quick=Variant()), claims=claims, shown=())
    )
    measures = {"start_loss": 5.0, "operations": 1.0, "step_variance": 1e-9}
    stopped = {"stopped": "it diverged", "measures": measures, "domains": {}}
    measured = {f"{one}-seed-{seed}" for one in ("reference", "quick") for seed in range(3)}
    variance = {"measures": {"loss": 2.0, "operations": 1.0, "step_variance": 1.0}}
    folder = write_trainings(
        tmp_path / "made",
        {"reference": [2.0] * 3, "quick": [2.0] * 3},
        dict.fromkeys(measured, variance) | {f"{name}-seed-2": stopped},
    )
    history = folder / f"{name}-seed-2" / "history.jsonl"
    history.write_text('{"step": 1, "tokens": 100}\n')  # before the first held-out measurement
    found = gather(folder)
    variant, (claim,) = found["variants"][name], found["claims"]
    assert variant["seeds"] == [0, 1] and variant["stopped"] == "it diverged"
    assert variant["measures"]["step_variance"]["mean"] == 1.0
    assert claim["mean"] == 0.0 and claim["seeds"] == 2
    assert found["variants"]["quick"]["difference"]["seeds"] == 2


def test_a_reference_that_is_stopped_ends_the_experiment(experiment: Callable[..., Stage]):
    described = Experiment("?", "dense", "stuck", {"stuck": Variant(STUCK)}, training=ADAMW)
    with pytest.raises(UserError, match="every variant of stuck, with which the others are comp"):
        experiment(described)


def test_a_killed_experiment_trains_no_part_twice_and_ends_with_the_same_bytes(
    experiment: Callable[..., Stage], dies_at: Callable[[int], list[int]], tmp_path: Path
):
    described = tried("ternary", ones=Variant(subln="ones"))
    whole = experiment(described)
    before = 4 * 12  # the base and two variants of the first seed, and the base of the second
    steps = dies_at(before + 7)
    with pytest.raises(KeyboardInterrupt):
        experiment(described, work=tmp_path / "work")
    again = experiment(described, work=tmp_path / "work")
    assert steps[before : before + 13] == [*range(7), *range(6, 12)]
    assert len(steps) == before + 13 + 12, "no other step is taken twice"
    names = sorted(p.relative_to(whole.folder) for p in whole.folder.rglob("*") if p.is_file())
    assert names == sorted(
        p.relative_to(again.folder) for p in again.folder.rglob("*") if p.is_file()
    )
    for name in names:
        assert (whole.folder / name).read_bytes() == (again.folder / name).read_bytes(), name
    trained = [folder for folder in again.work.iterdir() if not folder.name.startswith("base")]
    assert not [path for folder in trained for path in folder.glob("step-*")], "no checkpoints"


@pytest.fixture
def losses(make_stage: MakeStage, mixture: Path) -> Callable[..., list[float]]:
    """``losses(described, changes)``: of all variants with the first seed."""

    def run(described: Experiment, changes: dict[str, Any] | None = None) -> list[float]:
        stage = make_stage("experiment", "tried", {"mixture": mixture}, changes)
        trials = Trials(stage, described)
        first = trials.settings.seeds[0]
        return [trials.run(name, first)["measures"]["loss"] for name in described.variants]

    return run


@pytest.mark.parametrize(
    ("start", "others"),
    [
        (
            "dense",
            (
                Variant({"gradient_accumulation_steps": 4}),
                Variant(shares={"left": 0.8}),
                Variant(shuffle_buffer_size=3),
                Variant(spike=True),
                Variant(bfloat16_parameters=True),
            ),
        ),
        (
            "ternary",
            (
                Variant(subln="ones"),
                Variant(subln="none"),
                Variant(reconstruct={"kind": "layers", "rows": 4, "lr": 0.01}),
                Variant(quantizer={"scale": "least_squares"}),
                Variant(distillation={"weights": {"relations": 0.0}}),
                Variant(
                    distillation={
                        "weights": {"logits": 0.0, "relations": 0.0},
                        "gradient_ratios": {"hidden": 0.1},
                    }
                ),
                Variant(lambda_share=0.5),
                Variant(lambda_share=0.5, lambda_schedule="hard"),
            ),
        ),
    ],
)
def test_every_difference_of_a_variant_has_an_effect(
    losses: Callable[..., list[float]], start: str, others: tuple[Variant, ...]
):
    described = tried(start, **{f"other{n}": variant for n, variant in enumerate(others)})
    found = losses(described)
    assert len(set(found)) == 1 + len(others), found


@pytest.mark.parametrize(
    "changes",
    [
        {"experiments.runs.seeds": [2, 1]},
        {"experiments.runs.model.hidden_size": 32},
        {"experiments.runs.steps": 13},
        {"experiments.runs.batch_size": 5},
        {"experiments.runs.precision": "bfloat16"},
        {"experiments.runs.measure.rows_per_domain": 3},
        {"seed": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_setting_changes_what_is_measured(
    losses: Callable[..., list[float]], changes: dict[str, Any]
):
    assert losses(tried()) != losses(tried(), changes)


def test_a_dense_model_of_more_steps_starts_its_ternary_ones_lower(
    losses: Callable[..., list[float]],
):
    described = tried("ternary")
    (short,), (long,) = losses(described), losses(described, {"experiments.runs.base_steps": 120})
    assert long < short - 0.1


def test_a_seed_varies_initial_weights_and_rows(
    make_stage: MakeStage, mixture: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = []

    def begin(trainer: Trainer) -> dict[str, Any]:
        batch = trainer.data.batch(0, 0, batch_size=4, micro_batches=1)
        seen.append((trainer.model.lm_head.weight.detach().clone(), batch.tokens_BT))
        raise UserError("looked at")

    monkeypatch.setattr(Trainer, "run", begin)
    for seed in (0, 0, 1):
        stage = make_stage("experiment", "tried", {"mixture": mixture})
        Trials(stage, tried()).run("reference", seed)
    assert all(torch.equal(one, other) for one, other in zip(seen[0], seen[1], strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(seen[0], seen[2], strict=True))


def test_layers_are_reconstructed_on_rows_in_the_order_of_the_training(
    make_stage: MakeStage, mixture: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: dict[str, list[torch.Tensor]] = {"layers": [], "training": []}

    def reconstruct(model: torch.nn.Module, batches: Iterable[Batch], *_: Any) -> None:
        seen["layers"] = [batch.tokens_BT for batch in batches]

    def begin(trainer: Trainer) -> dict[str, Any]:
        seen["training"] = [trainer.data.batch(0, 0, batch_size=8, micro_batches=1).tokens_BT]
        raise UserError("looked at")

    monkeypatch.setattr(variants_module, "reconstruct_layers", reconstruct)
    trials = Trials(
        make_stage("experiment", "tried", {"mixture": mixture}),
        tried("ternary", layers=Variant(reconstruct={"rows": 8, "batch_size": 4})),
    )
    trials.run("reference", 0)
    monkeypatch.setattr(Trainer, "run", begin)
    trials.run("layers", 0)
    assert [len(tokens_BT) for tokens_BT in seen["layers"]] == [4, 4]
    assert torch.equal(torch.cat(seen["layers"]), seen["training"][0])


def test_threads_are_those_of_the_setting(
    experiment: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
):
    seen = []

    def run(trials: Trials, name: str, seed: int) -> dict[str, Any]:
        seen.append(torch.get_num_threads())
        return {"measures": {"loss": 1.0}}

    monkeypatch.setattr(Trials, "run", run)
    for threads in (1, 2):
        experiment(tried(), {"experiments.runs.threads": threads})
    assert seen == [1, 1, 2, 2]


def test_a_spike_is_in_one_step_and_changes_nothing_before_it(make_stage: MakeStage, mixture: Path):
    norms = {}
    for name in ("reference", "spiked"):
        stage = make_stage("experiment", "tried", {"mixture": mixture})
        Trials(stage, tried(spiked=Variant(spike=True))).run(name, 0)
        lines = (stage.folder / f"{name}-seed-0" / "history.jsonl").read_text().splitlines()
        norms[name] = [json.loads(line)["train/grad_norm_raw"] for line in lines]
    at = int(0.6 * 12)
    assert norms["spiked"][:at] == norms["reference"][:at]
    assert norms["spiked"][at] == pytest.approx(100 * norms["reference"][at], rel=1e-4)
    assert max(norms["spiked"][at + 1 :]) < 10 * max(norms["reference"])


def test_bfloat16_holds_small_updates_back(make_stage: MakeStage, mixture: Path):
    small = {"optimizer": {"adamw": {"lr": 1e-6}}}
    described = tried(fp32=Variant(small), bf16=Variant(small, bfloat16_parameters=True))
    trials = Trials(make_stage("experiment", "tried", {"mixture": mixture}), described)
    unmoved = {n: trials.run(n, 0)["measures"]["unmoved"] for n in ("fp32", "bf16")}
    assert unmoved["fp32"] < 0.1 < 0.8 < unmoved["bf16"]
    layer = torch.nn.Linear(5, 3)
    round_to_bfloat16(layer)
    assert layer.weight.dtype == torch.float32
    assert torch.equal(layer.weight, layer.weight.bfloat16().float())


def test_operations_are_those_of_the_layers_and_of_the_optimizer(
    make_stage: MakeStage, mixture: Path
):
    muon = {"optimizer": {"name": "muon", "muon": {"allow_unusual_lr": True}}}
    trials = Trials(
        make_stage("experiment", "tried", {"mixture": mixture}), tried(muon=Variant(muon))
    )
    found = {n: trials.run(n, 0)["measures"]["operations"] for n in ("reference", "muon")}
    # Hidden size 16, intermediate 32, one head, vocabulary 300; forward, and twice that backward.
    products = 4 * 16 * 16 + 3 * 16 * 32 + 16 * 300
    assert found["reference"] * 1e6 == pytest.approx(6 * products, rel=0.15), "and attention"
    five = 5 * (4 * 3 * 2 * 16**3 + 3 * 2 * (2 * 16 * 16 * 32 + 16**3))
    assert (found["muon"] - found["reference"]) * 1e6 * 128 == pytest.approx(five)


def test_shares_of_some_domains_leave_the_proportions_of_the_others():
    weights = shifted_weights({"a": 0.1, "b": 0.3, "c": 0.6}, {"a": 0.4})
    assert weights == pytest.approx({"a": 0.4, "b": 0.2, "c": 0.4})
    assert shifted_weights({"a": 1.0}, {}) == {"a": 1.0}
    with pytest.raises(UserError, match="changes the weight of domain code, which the mixture"):
        shifted_weights({"a": 1.0}, {"code": 0.1})


def test_spikes_of_the_gradient_norm_are_counted():
    norms = [1.0 + 0.01 * step for step in range(60)]
    assert gradient_spikes(norms) == 0
    norms[30], norms[40], norms[3] = 9.0, 5.0, 9.0  # the last has too few before it
    assert gradient_spikes(norms) == 2


def test_noise_is_of_the_second_half():
    loss = [9.0, 1.0, 9.0, 1.0, 3.0, 3.5, 3.0, 3.5]
    metrics: dict[str, list[float]] = {
        "train/loss": loss,
        "train/loss/a": loss,
        "train/share/a": [1.0] * 8,
        "train/loss_variance": [0.0] * 8,
        "train/grad_norm_raw": [1.0] * 8,
        "train/unmoved": [0.5, 0.0] * 4,
        "train/operations": [3e6, *[math.nan] * 7],
    }
    found = measures_of(History(list(range(1, 9)), list(range(2, 10)), metrics))
    assert (found["unmoved"], found["operations"]) == (0.25, 1.5)
    assert found["step_variance"] == pytest.approx(0.5**2 / 2)
    assert found["between"] == 0.0


def test_results_of_a_training_can_be_read(experiment: Callable[..., Stage]):
    folder = experiment(tried()).folder
    result = read_result(folder, "reference", 0)
    names: set[Measure] = {"loss", "start_loss", "unmoved", "spikes"}
    assert names <= set(result["measures"]) and result["stopped"] is None
    assert set(result["domains"]) == {"left", "right", "spare"}
    assert result["tokens"] == 12 * 4 * 32
