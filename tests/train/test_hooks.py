"""What settings add around the steps: averages, spikes, telemetry."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.quant.bitlinear import BitLinear
from wrinklefree.quant.settings import QuantizerSettings
from wrinklefree.stability.activations import ActivationTelemetry
from wrinklefree.stability.settings import SpikeSettings
from wrinklefree.train.averaging import Averaging
from wrinklefree.train.hooks import Hook
from wrinklefree.train.loop import Trainer

MakeTrainer = Callable[..., Trainer]
PLANTED = 11
"""The step, from 0, whose gradients are planted to be harmful."""


@pytest.fixture
def make_trainer(make_trainer: MakeTrainer) -> MakeTrainer:
    return partial(make_trainer, shape={"num_hidden_layers": 2})


class Snapshots(Hook):
    """The parameters after every step."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Tensor]] = []

    def after_step(self, training: Any, entry: dict[str, float]) -> None:
        self.taken.append({n: p.detach().clone() for n, p in training.model.named_parameters()})


def with_snapshots(trainer: Trainer) -> list[dict[str, Tensor]]:
    hook = Snapshots()
    trainer.hooks.insert(0, hook)
    return hook.taken


def stopping_in(trainer: Trainer, step: int) -> None:
    def stop(*_: Any) -> None:
        if trainer.state.step == step:
            raise KeyboardInterrupt

    trainer.optimizer.register_step_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()


def assert_same_end(one: Trainer, other: Trainer) -> None:
    assert one.state.history == other.state.history
    for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


LAST = {"averaging": {"name": "last", "last": {"checkpoints": 3, "interval": 2}}}
EMA = {"averaging": {"name": "ema", "ema": {"decay": 0.7}}}


@pytest.mark.parametrize("kind", ["last", "ema"])
def test_the_finished_model_is_the_average(make_trainer: MakeTrainer, kind: str):
    trainer = make_trainer(steps=8, **{"last": LAST, "ema": EMA}[kind])
    taken = with_snapshots(trainer)
    facts = trainer.run()["averaging"]
    for name, parameter in trainer.model.named_parameters():
        if kind == "last":
            expected = torch.stack([taken[step][name].double() for step in (3, 5, 7)]).mean(0)
        else:
            expected = taken[0][name].double()
            for step in range(1, 8):
                expected = 0.7 * expected + 0.3 * taken[step][name]
        torch.testing.assert_close(parameter.detach(), expected.float(), atol=1e-6, rtol=1e-6)
    assert facts["averaged"] == {"last": 3, "ema": 8}[kind]
    (hook,) = (hook for hook in trainer.hooks if isinstance(hook, Averaging))
    found = {"averaged": codes_of(trainer.model)}
    assert facts["held_out_loss_averaged"] == hook._loss(trainer)
    trainer.model.load_state_dict(taken[7], strict=False)
    found["last"] = codes_of(trainer.model)
    assert facts["held_out_loss_last"] == hook._loss(trainer) != facts["held_out_loss_averaged"]
    changed = (found["averaged"] != found["last"]).float().mean().item()
    assert facts["codes_changed"] == pytest.approx(changed) and changed > 0


def codes_of(model: PreTrainedModel) -> torch.Tensor:
    layers = (module for module in model.modules() if isinstance(module, BitLinear))
    return torch.cat([layer.ternary_codes()[0].flatten() for layer in layers])


@pytest.mark.parametrize("changes", [LAST, EMA], ids=["last", "ema"])
def test_a_resumed_average_is_the_same(make_trainer: MakeTrainer, changes: dict[str, Any]):
    whole = make_trainer("whole", steps=8, **changes)
    expected = whole.run()
    stopping_in(make_trainer("cut", steps=8, **changes), 6)
    second = make_trainer("cut", steps=8, **changes)
    assert second.run() == expected
    assert_same_end(second, whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"averaging": {"name": "last", "last": {"checkpoints": 2, "interval": 2}}},
        {"averaging": {"name": "last", "last": {"checkpoints": 3, "interval": 1}}},
        {"averaging": {"name": "ema", "ema": {"decay": 0.5}}},
        {},
    ],
    ids=str,
)
def test_every_setting_of_averaging_changes_the_model(
    make_trainer: MakeTrainer, changes: dict[str, Any]
):
    usual, other = make_trainer("usual", steps=8, **LAST), make_trainer("other", steps=8, **changes)
    usual.run()
    other.run()
    one, another = (dict(trainer.model.named_parameters()) for trainer in (usual, other))
    assert any(not torch.equal(one[name], another[name]) for name in one)


SPIKES: dict[str, Any] = {
    "enabled": True, "window": 6, "threshold": 8.0, "rollback": True, "skip_steps": 3,
}  # fmt: skip
QUIET = {"steps": 24, "clipping": {"name": "none"}, "checkpoint_interval": 4}
"""Long enough for the losses before a spike to be known."""


def planted(trainer: Trainer, times: float = 3000.0) -> Trainer:
    """One step's update is far too large, whichever time it is taken."""

    def explode(*_: Any) -> None:
        if trainer.state.step == PLANTED:
            for group in trainer.optimizer.param_groups:
                group["lr"] *= times

    trainer.optimizer.register_step_pre_hook(explode)
    return trainer


def spiked(make_trainer: MakeTrainer, name: str = "one", **changes: Any) -> Trainer:
    return planted(make_trainer(name, **QUIET, spikes={**SPIKES, **changes}))


def test_after_a_spike_training_goes_back_and_leaves_the_steps_out(
    make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str]
):
    trainer = spiked(make_trainer)
    facts = trainer.run()
    (event,) = facts["spikes"]
    assert event["step"] == PLANTED + 2, "the loss shows it in the step after the update"
    assert event["went_back_to"] == 10
    left_out = [int(e["step"]) for e in trainer.state.history if "train/left_out" in e]
    assert left_out == [11, 12, 13]
    losses = [e["train/loss"] for e in trainer.state.history if "train/loss" in e]
    assert max(losses) < losses[0] + 0.5
    assert facts["steps"] == 24 and facts["steps_skipped"] == 3
    said = capsys.readouterr().err
    assert "step 13: the loss" in said and "goes back to step 8 and leaves out steps 11 to" in said


def test_without_rollback_a_spike_is_told_and_training_goes_on(
    make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str]
):
    trainer = spiked(make_trainer, rollback=False)
    facts = trainer.run()
    assert facts["spikes"][0]["step"] == PLANTED + 2 and facts["steps_skipped"] == 0
    told = next(int(e["step"]) for e in trainer.state.history if "train/spike" in e)
    assert told == PLANTED + 2
    assert "is a spike" in capsys.readouterr().err


@pytest.mark.parametrize("stop_in", [9, 11, 18], ids="in step {}".format)
def test_a_run_with_a_spike_that_is_killed_ends_with_the_same_bytes(
    make_trainer: MakeTrainer, stop_in: int
):
    whole = spiked(make_trainer, "whole")
    expected = whole.run()
    stopping_in(spiked(make_trainer, "cut"), stop_in)
    second = spiked(make_trainer, "cut")
    assert second.run() == expected
    assert_same_end(second, whole)


@pytest.mark.parametrize(
    "change",
    [{"enabled": False}, {"window": 20}, {"threshold": 1000.0}, {"skip_steps": 5}],
    ids=str,
)
def test_every_setting_of_spikes_has_its_effect(make_trainer: MakeTrainer, change: dict[str, Any]):
    usual, other = spiked(make_trainer, "usual"), spiked(make_trainer, "other", **change)
    usual.run()
    other.run()
    assert usual.state.history != other.state.history


def test_without_checkpoints_there_is_nothing_to_go_back_to(
    make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str]
):
    trainer = spiked(make_trainer)
    trainer.folder = None
    facts = trainer.run()
    assert facts["spikes"][0]["went_back_to"] == -1
    assert "there is no checkpoint to go back to" in capsys.readouterr().err


@pytest.mark.parametrize("skip_steps", [3, 6])
def test_where_checkpoints_are_does_not_change_what_follows_from_a_spike(
    make_trainer: MakeTrainer, stop_within: Callable[[Trainer, int], None], skip_steps: int
):
    def make(name: str, interval: int) -> Trainer:
        spikes = {**SPIKES, "skip_steps": skip_steps}
        return planted(
            make_trainer(name, **QUIET | {"checkpoint_interval": interval}, spikes=spikes)
        )

    whole = make("whole", 1)
    expected = whole.run()
    assert expected["spikes"][0]["went_back_to"] == PLANTED + 2 - skip_steps
    assert expected["steps_skipped"] == skip_steps
    for interval in (4, 5, 100):
        other = make(f"of {interval}", interval)
        assert other.run() == expected
        assert_same_end(other, whole)
    for step in (PLANTED, PLANTED + 1):
        stop_within(make("cut", 4), step)
    again = make("cut", 4)
    assert again.run() == expected
    assert_same_end(again, whole)


def test_a_spike_that_would_lead_back_to_before_the_first_step_is_refused():
    with pytest.raises(ValidationError, match="skip_steps is 7 and window 6"):
        SpikeSettings.model_validate({**SPIKES, "skip_steps": 7})


def test_a_spike_is_tracked_at_its_step_and_progress_goes_back_with_training(
    make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str]
):
    trainer = spiked(make_trainer)
    trainer.run()
    logged: Any = trainer.journal._stage.run  # pyright: ignore[reportAttributeAccessIssue]
    assert [step for step, metrics in logged.metrics if "train/spike" in metrics] == [PLANTED + 2]
    assert "24 of 24 steps (100%)" in capsys.readouterr().err


@pytest.mark.parametrize(("skip_steps", "back", "then"), [(1, 12, 8), (3, -1, 12)])
def test_a_training_goes_back_past_a_damaged_checkpoint_or_stays_and_loses_none(
    make_trainer: MakeTrainer, skip_steps: int, back: int, then: int
):
    trainer = spiked(make_trainer, skip_steps=skip_steps)
    damaged = {1: "step-00000012", 3: "step-00000008"}[skip_steps]

    def damage(*_: Any) -> None:
        if trainer.state.step == PLANTED + 1 and trainer.folder and not restored[1:]:
            (trainer.folder / damaged / "parts.pt").write_bytes(b"none")

    restored: list[int] = []
    watched = Hook()
    watched.on_restored = lambda training: restored.append(training.state.step)
    trainer.hooks.append(watched)
    trainer.optimizer.register_step_pre_hook(damage)
    facts = trainer.run()
    assert facts["spikes"][0]["went_back_to"] == back and facts["steps"] == 24
    # The one of step 12 stood while none before it could be used, for a spike further on.
    assert restored[:2] == [0, then]


def test_telemetry_is_in_the_history_where_it_is_due_and_changes_nothing(
    make_trainer: MakeTrainer,
):
    without = make_trainer("without")
    measured = make_trainer("with", telemetry_interval=2, evaluate_interval=2)
    without.run()
    measured.run()
    for one, other in zip(without.model.parameters(), measured.model.parameters(), strict=True):
        assert torch.equal(one, other)
    steps = [int(e["step"]) for e in measured.state.history if "activation/zeroed" in e]
    assert steps == [2, 4]
    again, beside = make_trainer("again"), Beside()
    again.hooks.append(beside)
    again.run()
    seen = {k: v for k, v in measured.state.history[1].items() if k.startswith("activation/")}
    assert seen == pytest.approx(beside.metrics) and seen["activation/quantization_error"] > 0
    assert 0 < measured.state.history[1]["ternary/flipped"] < 0.5
    assert "ternary/flipped" not in measured.state.history[0]


def test_codes_are_compared_with_those_of_the_beginning_also_after_a_restart(
    make_trainer: MakeTrainer,
):
    changes: dict[str, Any] = {"telemetry_interval": 5, "checkpoint_interval": 2}
    stopped = make_trainer("stopped", **changes)
    start = {
        name: layer.ternary_codes()[0]
        for name, layer in stopped.model.named_modules()
        if isinstance(layer, BitLinear)
    }
    stopping_in(stopped, 3)
    resumed = make_trainer("stopped", **changes)
    resumed.run()
    layers = [(resumed.model.get_submodule(name), codes) for name, codes in start.items()]
    shares = [(layer.ternary_codes()[0] != codes).double().mean().item() for layer, codes in layers]
    found = resumed.state.history[4]["ternary/flipped_since"]
    assert 0 < found == pytest.approx(sum(shares) / len(shares))


class Beside(Hook):
    """Measures the second step, and nothing else."""

    def before_step(self, training: Any, step: int) -> dict[str, float]:
        if step == 1:
            self.telemetry = ActivationTelemetry(training.model).__enter__()
        return {}

    def after_step(self, training: Any, entry: dict[str, float]) -> None:
        if entry["step"] == 2:
            self.telemetry.__exit__(None, None, None)
            self.metrics = self.telemetry.metrics()


def test_scales_that_are_learned_may_rest_while_nothing_is_quantized(make_trainer: MakeTrainer):
    trainer = make_trainer(
        quantizer=QuantizerSettings(scale="learned"), steps=104,
        lambda_warmup={"warmup_steps": 102, "schedule": "hard"}, schedule={"warmup_steps": 2},
    )  # fmt: skip
    assert trainer.run()["steps"] == 104
