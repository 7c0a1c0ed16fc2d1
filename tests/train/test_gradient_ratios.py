from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.train.distill_settings import DistillationSettings
from wrinklefree.train.hooks import Hook, Training
from wrinklefree.train.loop import Trainer
from wrinklefree.train.objectives.distillation import distillation
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.objectives.objective import Objective

RATIO = "distill/logits_ratio"


@pytest.fixture
def make_trainer(make_trainer: Callable[..., Trainer]) -> Callable[..., Trainer]:
    """Fully quantized from the first step on."""
    return partial(make_trainer, lambda_warmup={"warmup_steps": 0})


def teacher() -> PreTrainedModel:
    torch.manual_seed(11)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=400,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )


def objective(weights: dict[str, float], **ratios: Any) -> Objective:
    settings = DistillationSettings.model_validate(
        {
            "weights": {"cross_entropy": 0.5, "logits": 0.0, "relations": 0.0, **weights},
            "relations": {"heads": 2, "causal": True},
            "gradient_ratios": ratios,
        }
    )
    return distillation(NextToken(), settings, teacher())


def gradient(trainer: Trainer, name: str) -> float:
    """Norm of the gradient of one term on the first micro-batch, by its definition."""
    of_term = trainer.train_step.objective.alone(name)
    micro = of_term.corruption.prepare(trainer.batch(0, 0), 0)
    denominator = of_term.corruption.denominator(micro)
    loss = of_term.loss(trainer.train_step(micro), micro, denominator).loss
    found = torch.autograd.grad(loss, list(trainer.model.parameters()), allow_unused=True)
    return sum(g.double().square().sum().item() for g in found if g is not None) ** 0.5


@pytest.mark.parametrize("name", ["logits", "relations", "hidden"])
def test_a_target_gives_its_term_the_weight_that_has_this_ratio(
    make_trainer: Callable[..., Trainer], name: str
) -> None:
    trainer = make_trainer(objective=objective({}, **{name: 0.3}, steps=1))
    expected = 0.3 * gradient(trainer, "cross_entropy") / gradient(trainer, name)
    facts = trainer.run()
    assert facts["weights_by_gradient_ratio"] == {name: pytest.approx(expected, rel=1e-4)}
    history = trainer.state.history
    assert history[0][f"distill/{name}_ratio"] == pytest.approx(0.3)
    assert not any(f"distill/{name}_ratio" in entry for entry in history[1:])
    for entry in history:
        weighted, raw = entry[f"distill/{name}_weighted"], entry[f"distill/{name}"]
        assert weighted == pytest.approx(expected * raw, rel=1e-4)


def test_a_target_s_weight_follows_the_mean_of_the_first_steps_and_stays(
    make_trainer: Callable[..., Trainer],
) -> None:
    trainer = make_trainer(objective=objective({}, logits=0.3, steps=3))
    trainer.run()
    weights = [
        entry["distill/logits_weighted"] / entry["distill/logits"]
        for entry in trainer.state.history
    ]
    raw = [
        entry["distill/logits_ratio"] / weight
        for entry, weight in zip(trainer.state.history[:3], weights, strict=False)
    ]
    for step, weight in enumerate(weights):
        first = raw[: min(step + 1, 3)]
        assert weight == pytest.approx(0.3 * len(first) / sum(first), rel=1e-4)
    assert len(set(weights[:3])) == 3


def test_ratios_are_measured_every_so_often_and_change_nothing(
    make_trainer: Callable[..., Trainer],
) -> None:
    weights = {"logits": 1.0, "hidden": 2.0}
    silent = make_trainer(
        "silent", objective(weights, interval=0), **{"optimizer.name": "muonclip"}
    )
    watched = make_trainer(
        "watched", objective(weights, interval=2), **{"optimizer.name": "muonclip"}
    )
    for trainer in (silent, watched):
        trainer.run()
    for step, (one, two) in enumerate(
        zip(silent.state.history, watched.state.history, strict=True)
    ):
        more = two.keys() - one.keys()
        assert more == (
            {"distill/logits_ratio", "distill/hidden_ratio"} if step % 2 == 0 else set()
        )
        assert all(one[name] == two[name] for name in one)
    assert watched.state.history[0]["distill/hidden_ratio"] > 0


class Killed(Hook):
    """Ends the process, as it were, in the fifth step."""

    def after_step(self, training: Training, entry: dict[str, float]) -> None:
        if training.state.step == 5:
            raise InterruptedError


def test_a_resumed_training_has_the_same_weights(make_trainer: Callable[..., Trainer]) -> None:
    target = {"relations": 2.0, "steps": 3}
    whole = make_trainer("whole", objective({}, **target))
    facts = whole.run()
    killed = make_trainer("killed", objective({}, **target))
    killed.hooks.append(Killed())
    with pytest.raises(InterruptedError):
        killed.run()
    resumed = make_trainer("killed", objective({}, **target))
    assert resumed.run() == facts
    assert resumed.state.history == whole.state.history


def test_a_step_that_is_cut_off_is_measured_once(
    make_trainer: Callable[..., Trainer], stop_within: Callable[[Trainer, int], None]
) -> None:
    target = {"logits": 0.3, "steps": 3}
    whole = make_trainer("whole", objective({}, **target))
    facts = whole.run()
    stop_within(make_trainer("cut", objective({}, **target), checkpoint_interval=100), 1)
    resumed = make_trainer("cut", objective({}, **target))
    assert resumed.run() == facts
    assert resumed.state.history == whole.state.history


def test_a_training_that_continues_measures_for_new_targets_alone_and_forgets_old_ones(
    make_trainer: Callable[..., Trainer], go_on_from: Callable[[Trainer, Trainer], None]
) -> None:
    old = make_trainer("old", objective({}, logits=0.3, relations=0.3, steps=2))
    before = old.run()["weights_by_gradient_ratio"]
    new = make_trainer("new", objective({}, logits=0.6, hidden=0.3, steps=2), steps=8)
    go_on_from(new, old)
    weights = new.run()["weights_by_gradient_ratio"]
    assert weights == {"logits": pytest.approx(2 * before["logits"]), "hidden": weights["hidden"]}
    measured = [
        entry["distill/hidden_ratio"] * entry["distill/hidden"] / entry["distill/hidden_weighted"]
        for entry in new.state.history[5:7]
    ]
    assert weights["hidden"] == pytest.approx(2 * 0.3 / sum(measured), rel=1e-4)
    assert "distill/hidden_ratio" not in new.state.history[7]


def test_a_measurement_that_is_not_finite_decides_nothing(
    make_trainer: Callable[..., Trainer],
) -> None:
    trainer = make_trainer(objective=objective({}, logits=0.3, steps=3), max_skipped_steps=1)
    weight = trainer.model.get_parameter("model.layers.0.self_attn.q_proj.weight")
    weight.register_hook(lambda g: g * (math.nan if trainer.state.step == 1 else 1.0))
    facts = trainer.run()
    assert facts["steps_skipped"] == 1
    ratios = [
        entry["distill/logits_ratio"] * entry["distill/logits"] / entry["distill/logits_weighted"]
        for entry in trainer.state.history
        if "distill/logits_ratio" in entry
    ]
    expected = 0.3 * 3 / sum(ratios)
    assert len(ratios) == 3
    assert facts["weights_by_gradient_ratio"] == {"logits": pytest.approx(expected, rel=1e-4)}


def test_a_target_s_weight_is_decided_again_when_quantization_has_its_full_strength(
    make_trainer: Callable[..., Trainer],
) -> None:
    of_logits = objective({}, logits=0.3, steps=1, interval=0)
    trainer = make_trainer(objective=of_logits, lambda_warmup={"warmup_steps": 2})
    facts = trainer.run()
    history = trainer.state.history
    weights = [entry["distill/logits_weighted"] / entry["distill/logits"] for entry in history]
    measured = {i: e["distill/logits_ratio"] for i, e in enumerate(history) if RATIO in e}
    assert list(measured) == [0, 2], "of a step, and of one at full strength"
    assert list(measured.values()) == pytest.approx([0.3, 0.3], rel=1e-4)
    assert weights[1] == pytest.approx(weights[0]) != weights[2]
    assert weights[4] == pytest.approx(weights[2])
    assert facts["weights_by_gradient_ratio"] == {"logits": pytest.approx(weights[4], rel=1e-4)}


def taught_by_its_copy(make_trainer: Callable[..., Trainer], warmup: int) -> Trainer:
    """Student and teacher differ by quantization alone."""
    trainer = make_trainer(
        objective=objective({}, logits=0.3, hidden=0.2, steps=2),
        lambda_warmup={"warmup_steps": warmup},
    )
    ((_, its_teacher),) = trainer.train_step.objective.teachers
    assert its_teacher.model
    its_teacher.model.load_state_dict(trainer.model.state_dict())
    return trainer


def test_a_student_that_begins_as_its_teacher_is_measured_once_it_differs(
    make_trainer: Callable[..., Trainer],
) -> None:
    trainer = taught_by_its_copy(make_trainer, 2)
    facts = trainer.run()
    first, second, *_ = trainer.state.history
    assert first[RATIO] < 1e-6 and first["distill/hidden_ratio"] == 0
    assert second[RATIO] == pytest.approx(0.3)
    assert first["distill/logits_weighted"] == first["distill/logits"]
    assert all(map(math.isfinite, facts["weights_by_gradient_ratio"].values()))
    assert trainer.state.history[2][RATIO] == pytest.approx(0.3)  # decided by this step alone
    assert trainer.state.history[2]["distill/hidden_ratio"] == pytest.approx(0.2)


def test_a_term_without_a_gradient_at_full_strength_is_an_error(
    make_trainer: Callable[..., Trainer],
) -> None:
    trainer = make_trainer(objective=objective({}, hidden=0.3, steps=2))
    ((_, its_teacher),) = trainer.train_step.objective.teachers
    its_teacher.model = trainer.model
    with pytest.raises(UserError, match="at step 1 the gradient of hidden is 0: give the term a"):
        trainer.run()
