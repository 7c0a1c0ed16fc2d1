from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from wrinklefree.research.world_model import stage as stage_module
from wrinklefree.research.world_model.model import build, predicted
from wrinklefree.research.world_model.settings import WorldModelSettings
from wrinklefree.research.world_model.stage import make_world, scores, train_world_models
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.history import read_history

MakeStage = Callable[..., Stage]


def content(stage: Stage) -> dict[str, Any]:
    train_world_models(stage)
    return json.loads((stage.folder / "world_model.json").read_text())


def settings_of(stage: Stage) -> WorldModelSettings:
    return stage.section("world_model", WorldModelSettings)


def test_both_models_are_trained_from_a_guess_and_asked_alike(make_stage: MakeStage) -> None:
    changes = {"world_model.training.steps": 40, "world_model.model.scaled_embedding": True}
    stage = make_stage("world_model", None, {}, changes)
    found = content(stage)
    assert found["sizes"] == [64, 64, 16]
    assert found["initial_loss"] == pytest.approx(math.log(65536))
    for name in ("dense", "ternary"):
        history = read_history(stage.folder / name)
        assert ("train/lambda" in history[0]) == (name == "ternary")
        model = found["models"][name]
        assert model["first_loss"] == history[0]["train/loss"]
        assert model["first_loss"] == pytest.approx(math.log(65536), rel=0.1)
        assert model["loss"] < 0.8 * model["first_loss"]
        assert model["healthy_norms"] > 0.5
        assert len(model["errors"]) == 2 and len(model["right"]) == 3
    assert found["tokenized"]["right"] == [1.0, 1.0, 1.0]
    assert found["tokenized"]["error"] < found["copied"]["error"]
    table = (stage.folder / "table.txt").read_text().splitlines()
    assert max(map(len, table)) <= 80
    for name in ("losses", "frames"):
        assert (stage.folder / f"plots/{name}.svg").read_text().count("<svg") == 1


def test_what_is_copied_is_the_last_given_frame(make_stage: MakeStage) -> None:
    stage = make_stage("world_model", None, {}, {"world_model.context_frames": 2})
    found, settings = content(stage), settings_of(stage)
    world = make_world(settings, stage.seed)
    frames = world.held_out_NT.unflatten(1, (settings.video.frames, settings.places)).clone()
    frames[:, settings.context_frames :] = frames[:, [settings.context_frames - 1]]
    assert found["copied"] == scores(world, frames.flatten(1))


def test_a_world_that_stands_still_is_copied_without_a_fault(make_stage: MakeStage) -> None:
    found = content(make_stage("world_model", None, {}, {"world_model.video.most_speed": 0.0}))
    assert found["copied"] == found["tokenized"]


def test_scores_are_those_of_predicted_frames_alone(make_stage: MakeStage) -> None:
    world = make_world(settings_of(make_stage("world_model")), seed=1)
    tokens = world.held_out_NT.clone()
    true = scores(world, tokens)
    tokens[:, : world.context] = 0
    assert scores(world, tokens) == true
    tokens[:, world.context] += 1  # another word of the last vocabulary, once in eight tokens
    changed = scores(world, tokens)
    assert changed["right"][:2] == [1.0, 1.0]
    assert changed["right"][2] == pytest.approx(7 / 8)
    frames = world.tokenizer.decode(tokens.numpy(), 8)[:, 1:]
    off = [np.sqrt(((frames[:, n] - world.held_out[:, 1 + n]) ** 2).mean()) for n in range(2)]
    assert changed["errors"] == pytest.approx(off, rel=1e-5)
    assert changed["errors"][1] == true["errors"][1]


EFFECTS: dict[str, Any] = {
    "video.clips": 23,
    "video.held_out_clips": 4,
    "video.frames": 4,
    "video.size": 16,
    "video.shapes": 3,
    "video.most_speed": 1.0,
    "tokenizer.patch_size": 8,
    "tokenizer.levels": [[8, 8], [8]],
    "model.layers": 2,
    "quantizer": {"scale": "least_squares"},
    "training.steps": 5,
    "training.batch_size": 3,
    "training.gradient_accumulation_steps": 2,
    "training.optimizer": {"name": "muon"},
    "training.schedule": {"warmup_steps": 2},
    "training.lambda_warmup": {"warmup_steps": 0},
    "training.precision": "bfloat16",
    "context_frames": 2,
}


@pytest.fixture(scope="module")
def unchanged() -> dict[str, Any]:
    return {}


@pytest.mark.parametrize("setting", EFFECTS)
def test_every_setting_has_an_effect(
    make_stage: MakeStage, unchanged: dict[str, Any], setting: str
) -> None:
    if not unchanged:
        unchanged.update(content(make_stage("world_model")))
    found = content(
        make_stage("world_model", None, {}, {f"world_model.{setting}": EFFECTS[setting]})
    )
    assert found["models"]["ternary"] != unchanged["models"]["ternary"]
    only_ternary = setting in ("quantizer", "training.lambda_warmup")
    assert (found["models"]["dense"] == unchanged["models"]["dense"]) == only_ternary


def test_as_many_passes_predict_as_the_settings_say(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(settings_of(make_stage("world_model")), seed=1)
    passes: list[int] = []

    def watched(model: Any, tokens: torch.Tensor, **how: Any) -> torch.Tensor:
        passes.append(how["passes"])
        return predicted(model, tokens, **how)

    monkeypatch.setattr(stage_module, "predicted", watched)
    for count in (1, 5):
        settings = world.settings.model_copy(update={"decoding_passes": count})
        stage_module._answers(replace(world, settings=settings), build(settings, seed=1))
    assert passes == [1, 5]


def test_a_stage_that_was_killed_ends_with_the_same_bytes(
    make_stage: MakeStage, dies_at: Callable[[int], list[int]]
) -> None:
    whole = make_stage("world_model")
    train_world_models(whole)
    killed = make_stage("world_model")
    steps = dies_at(8)
    with pytest.raises(KeyboardInterrupt):
        train_world_models(killed)
    again = make_stage("world_model", work=killed.work)
    train_world_models(again)
    assert steps == [0, 1, 2, 3, 0, 1, 2, 3, 2, 3]
    for name in ("world_model.json", "table.txt", "plots/frames.svg", "ternary/history.jsonl"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video.size": 10}, "video.size 10 is no multiple of tokenizer.patch_size 4"),
        ({"context_frames": 3}, "context_frames is 3 of video.frames 3"),
        ({"training.lambda_warmup": {"warmup_steps": 4}}, "no step would train the fully"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    make_stage: MakeStage, change: dict[str, Any], message: str
) -> None:
    changes = {f"world_model.{path}": value for path, value in change.items()}
    settings = make_stage("world_model", None, {}, changes).settings["world_model"]
    with pytest.raises(ValidationError, match=message):
        WorldModelSettings.model_validate(settings)


def test_the_world_is_a_function_of_settings_and_seed(make_stage: MakeStage) -> None:
    settings = settings_of(make_stage("world_model"))
    one, same, other = (make_world(settings, seed) for seed in (1, 1, 2))
    assert torch.equal(one.train_NT, same.train_NT)
    assert not torch.equal(one.train_NT, other.train_NT)
    assert one.held_out_NT.shape == (3, 12)
    assert not {tuple(row.tolist()) for row in one.train_NT} & {
        tuple(row.tolist()) for row in one.held_out_NT
    }
