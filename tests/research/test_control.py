from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wrinklefree.errors import UserError
from wrinklefree.evaluate.scores import HeldOutScores, ScoreSums, domain_score
from wrinklefree.models.dense import build_scratch
from wrinklefree.models.folder import load_model, save_model
from wrinklefree.models.settings import ModelSettings
from wrinklefree.models.transforms import ModelFormat, ternary
from wrinklefree.quant.bitlinear import set_quantization_lambda
from wrinklefree.research import control as room
from wrinklefree.research.control import compare, table_text, train_control
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.loop import Trainer
from wrinklefree.train.stage2 import continue_pretraining

MakeStage = Callable[..., Stage]


@pytest.fixture(scope="module")
def inputs(
    mixture: Path, tokenizer: Path, shape: ModelSettings, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The dense base, and two ternary students that were never trained."""
    root = tmp_path_factory.mktemp("models")
    folders = {"mixture": mixture}
    for name in ("model", "subln", "stage2", "distill_ar"):
        model = build_scratch(shape, 300, 32, 0, seed=3)
        model_format = ModelFormat() if name == "model" else ternary()
        model_format.apply(model)
        folders[name] = root / name
        save_model(folders[name], model, model_format, tokenizer)
    return folders


def control(make_stage: MakeStage, inputs: dict[str, Path], **changes: Any) -> dict[str, Any]:
    stage = make_stage("control", None, inputs, changes)
    train_control(stage)
    return json.loads((stage.folder / "control.json").read_text())


def test_the_dense_model_sees_the_rows_of_stage_2_at_its_rates(
    make_stage: MakeStage, inputs: dict[str, Path]
):
    trained = make_stage("stage2", None, {"model": inputs["stage2"], "mixture": inputs["mixture"]})
    continue_pretraining(trained)
    stage = make_stage("control", None, inputs)
    train_control(stage)
    for name in ("train/learning_rate", "train/share/left", "tokens"):
        theirs, ours = (
            [json.loads(line).get(name) for line in file.read_text().splitlines()]
            for file in (
                trained.folder / "history.jsonl",
                stage.folder / "stage2" / "history.jsonl",
            )
        )
        assert theirs == ours and set(ours) != {None}, name
    assert "train/lambda" not in (stage.folder / "stage2" / "history.jsonl").read_text()


def test_the_dense_model_draws_from_the_seeds_of_the_students(
    make_stage: MakeStage, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    seeds, plain = [], room.open_data

    def reading(part: Stage, *arguments: Any) -> Any:
        seeds.append(part.seed)
        return plain(part, *arguments)

    monkeypatch.setattr(room, "open_data", reading)
    control(make_stage, inputs)
    assert seeds == [make_stage("stage2").seed, make_stage("distill", "ar").seed]


def test_each_training_goes_on_from_the_one_before_and_losses_are_those_of_its_model(
    make_stage: MakeStage, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    ends: list[tuple[torch.Tensor, torch.Tensor]] = []
    run = Trainer.run

    def watched(trainer: Trainer) -> Any:
        weight = trainer.model.get_input_embeddings().weight
        before = weight.detach().clone()
        facts = run(trainer)
        ends.append((before, weight.detach().clone()))
        return facts

    monkeypatch.setattr(Trainer, "run", watched)
    found = control(make_stage, inputs)
    base, _ = load_model(inputs["model"])
    (start, after_stage2), (before_distill, _) = ends
    assert torch.equal(start, base.get_input_embeddings().weight.detach())
    assert torch.equal(before_distill, after_stage2) and not torch.equal(start, after_stage2)
    stage2, distilled = (found["students"][name] for name in ("stage2", "distill_ar"))
    assert distilled["losses"]["overall"]["dense"] < stage2["losses"]["overall"]["dense"]
    assert distilled["losses"]["left"]["ternary"] == stage2["losses"]["left"]["ternary"]
    for student in (stage2, distilled):
        for name, losses in student["losses"].items():
            difference = student["differences"][name]
            assert difference["mean"] == pytest.approx(losses["ternary"] - losses["dense"])
            assert difference["low"] < difference["mean"] < difference["high"]


def test_the_dense_model_has_no_more_features_than_pruned_students(
    make_stage: MakeStage,
    inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    subln = tmp_path / "subln"
    shutil.copytree(inputs["subln"], subln)
    config = json.loads((subln / "config.json").read_text()) | {"intermediate_size": 20}
    (subln / "config.json").write_text(json.dumps(config))
    importances = {"intermediate_size": [list(range(32))]}
    (subln / "importances.json").write_text(json.dumps(importances))
    starts = []

    def begin(trainer: Trainer) -> Any:
        starts.append(trainer.model.get_parameter("model.layers.0.mlp.down_proj.weight").detach())
        raise UserError("looked at")

    monkeypatch.setattr(Trainer, "run", begin)
    with pytest.raises(UserError, match="looked at"):
        control(make_stage, inputs | {"subln": subln})
    base, _ = load_model(inputs["model"])
    whole_DF = base.get_parameter("model.layers.0.mlp.down_proj.weight")
    assert torch.equal(starts[0], whole_DF[:, 12:])


def test_students_are_measured_fully_quantized(make_stage: MakeStage, inputs: dict[str, Path]):
    from wrinklefree.mixture.loader import HeldOutData
    from wrinklefree.research.measure import measure_held_out
    from wrinklefree.research.settings import MeasureSettings

    found = control(make_stage, inputs)["students"]["stage2"]["losses"]["left"]["ternary"]
    settings = MeasureSettings(rows_per_domain=4, batch_size=3)
    losses = {}
    for strength in (0.0, 1.0):
        model, _ = load_model(inputs["stage2"])
        set_quantization_lambda(model, strength)
        scores = measure_held_out(model, HeldOutData(inputs["mixture"]), settings)["left"]
        losses[strength] = domain_score(scores, "left").score.loss
    assert found == losses[1.0] != losses[0.0]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2},
        {"stage2.steps": 5},
        {"distill.ar.steps": 5},
        {"distill.ar.optimizer.adamw.lr": 0.02},
        {"control.measure.rows_per_domain": 3},
        {"control.confidence": 0.5},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_setting_changes_what_is_found(
    make_stage: MakeStage, inputs: dict[str, Path], changes: dict[str, Any]
):
    assert control(make_stage, inputs) != control(make_stage, inputs, **changes)


def test_a_killed_control_goes_on_and_ends_with_the_same_bytes(
    make_stage: MakeStage, inputs: dict[str, Path], dies_at: Callable[[int], list[int]]
):
    whole, killed = (make_stage("control", None, inputs) for _ in range(2))
    train_control(whole)
    steps = dies_at(8)
    with pytest.raises(KeyboardInterrupt):
        train_control(killed)
    again = make_stage("control", None, inputs, work=killed.work)
    train_control(again)
    assert steps == [0, 1, 2, 3, 0, 1, 2, 3, 2, 3]
    for name in ("control.json", "table.txt", "distill_ar/history.jsonl"):
        assert (whole.folder / name).read_bytes() == (again.folder / name).read_bytes()


def test_the_table_fits_a_terminal_and_says_every_domain():
    names = ["overall", *(f"domain-{number}-{'x' * number * 9}" for number in range(6))]
    losses = {name: {"dense": 12.3456, "ternary": 13.3456} for name in names}
    differences = {name: {"mean": 1.0, "low": 0.5, "high": 1.5} for name in names}
    student = {"losses": losses, "differences": differences}
    content = {
        "confidence": 0.95,
        "documents": dict.fromkeys(names[1:], 100_000),
        "students": {"stage2": student, "distill_ar": student},
    }
    lines = table_text(content).splitlines()
    assert max(map(len, lines)) <= 80
    for name in ("stage 2", "distilled", *(name[:20] for name in names)):
        assert any(line.startswith(name) for line in lines), name


def test_a_constant_difference_is_found_exactly_and_without_doubt():
    def scores(extra: float) -> dict[str, HeldOutScores]:
        found = {}
        for name, loss in (("one", 2.0), ("other", 4.0)):
            counts = [3, 5, 4]
            sums = ScoreSums([count * (loss + extra) for count in counts], counts, counts)
            found[name] = HeldOutScores(rows=sums, documents=sums)
        return found

    found = compare(scores(0.0), scores(0.25), {"one": 0.75, "other": 0.25}, 0.95)
    assert found["losses"]["overall"] == pytest.approx({"dense": 2.5, "ternary": 2.75})
    for difference in found["differences"].values():
        assert list(difference.values()) == pytest.approx([0.25] * 3)


@pytest.mark.parametrize(("name", "given"), [("model", "stage2"), ("distill_ar", "model")])
def test_a_model_of_another_kind_is_refused_before_the_training(
    make_stage: MakeStage,
    inputs: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    given: str,
):
    monkeypatch.setattr(Trainer, "run", lambda self: pytest.fail("trained"))
    with pytest.raises(UserError, match=rf"{given}: by its wrinklefree.json .*; expected a"):
        control(make_stage, {**inputs, name: inputs[given]})
