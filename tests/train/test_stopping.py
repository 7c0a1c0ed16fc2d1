"""What a training does when it is told to stop, and when a step is not finite."""

from __future__ import annotations

import contextlib
import copy
import math
import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from wrinklefree.errors import UserError
from wrinklefree.evaluate.history import read_history as read_curves
from wrinklefree.tracking.artifact import open_artifact
from wrinklefree.tracking.signals import STOPPING
from wrinklefree.train.history import read_history
from wrinklefree.train.hooks import Hook, Training
from wrinklefree.train.loop import Trainer
from wrinklefree.train.settings import QuantizedTrainingSettings

MakeTrainer = Callable[..., Trainer]


class Stopped(BaseException):
    """What the frame of a stage makes of a signal."""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Stopped

    before = {one: signal.signal(one, stop) for one in STOPPING}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.fixture
def make_trainer(make_trainer: MakeTrainer) -> MakeTrainer:
    """Five steps of two micro-batches, whose only checkpoint is the last one."""
    return partial(make_trainer, checkpoint_interval=100)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def checkpoints(trainer: Trainer) -> list[str]:
    return sorted(path.name for path in trainer.folder.glob("step-*"))


def before_micro_batch(trainer: Trainer, number: int, action: Callable[[], Any]) -> None:
    """Do ``action`` while micro-batch ``number`` of all, from 0, is read."""
    batch, counted = trainer.batch, iter(range(1000))

    def reads(*arguments: int) -> Any:
        if next(counted) == number:
            action()
        return batch(*arguments)

    trainer.batch = reads  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("signal_", STOPPING, ids=lambda one: one.name)
@pytest.mark.parametrize("micro_batch", [2, 6, 7])
def test_a_training_that_is_stopped_saves_its_last_step_and_goes_on_from_it(
    make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str], signal_: Any, micro_batch: int
):
    reference = make_trainer("reference")
    reference.run()
    first = make_trainer()
    before_micro_batch(first, micro_batch, lambda: signal.raise_signal(signal_))
    with pytest.raises(Stopped):
        first.run()
    steps = micro_batch // 2
    assert checkpoints(first) == [f"step-{steps:08d}"]
    assert f"{signal_.name} came; step {steps} is saved before leaving" in capsys.readouterr().err
    second = make_trainer()
    second.run()
    assert f"going on from step {steps}" in capsys.readouterr().err
    assert equal(weights(second), weights(reference))
    assert read_history(second.journal._stage.folder) == reference.state.history


def test_a_signal_within_an_update_lets_it_end(make_trainer: MakeTrainer):
    reference = make_trainer("reference")
    reference.run()
    first = make_trainer()

    def stop(*_: Any) -> None:
        if first.state.step == 2:
            signal.raise_signal(signal.SIGTERM)

    first.optimizer.register_step_pre_hook(stop)
    with pytest.raises(Stopped):
        first.run()
    assert checkpoints(first) == ["step-00000003"]
    second = make_trainer()
    second.run()
    assert equal(weights(second), weights(reference))


def test_more_signals_while_it_saves_leave_a_whole_checkpoint(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
):
    first = make_trainer()
    before_micro_batch(first, 4, lambda: signal.raise_signal(signal.SIGTERM))
    save = torch.save

    def interrupted(*arguments: Any) -> None:
        for one in STOPPING:
            signal.raise_signal(one)
        save(*arguments)

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(Stopped):
        first.run()
    assert checkpoints(first) == ["step-00000002"]
    open_artifact(first.folder / "step-00000002")
    assert make_trainer().state.restore(first.folder) == []


def test_what_has_its_checkpoint_is_not_saved_again(
    make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str]
):
    first = make_trainer(checkpoint_interval=1)
    before_micro_batch(first, 4, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped):
        first.run()
    assert checkpoints(first) == ["step-00000001", "step-00000002"]
    assert "before leaving" not in capsys.readouterr().err


def breaks_gradient(trainer: Trainer, *steps: int) -> None:
    """Make the gradients of ``steps``, counted from 0, NaN in one parameter."""
    weight = trainer.model.get_parameter("model.layers.0.self_attn.q_proj.weight")
    weight.register_hook(lambda g: g * (math.nan if trainer.state.step in steps else 1.0))


def test_a_step_that_is_not_finite_is_skipped_where_settings_allow_it(
    make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str]
):
    trainer = make_trainer(max_skipped_steps=2)
    breaks_gradient(trainer, 1, 3)
    after: list[dict[str, Tensor]] = []
    trainer.optimizer.register_step_post_hook(lambda *_: after.append(weights(trainer)))
    facts = trainer.run()
    assert len(after) == 3, "the others were applied"
    assert facts["steps"] == 5 and facts["steps_skipped"] == 2
    history = trainer.state.history
    assert [entry["step"] for entry in history] == [1, 2, 3, 4, 5]
    assert [entry.get("train/skipped") for entry in history] == [None, 1.0, None, 1.0, None]
    assert history[1]["tokens"] == history[0]["tokens"] < history[2]["tokens"]
    rates = [entry.get("train/learning_rate") for entry in history]
    assert rates[2] == pytest.approx(0.0006975), "the rate of the third step, by its number"
    logged: Any = trainer.journal._stage.run
    assert [step for step, metrics in logged.metrics if "train/skipped" in metrics] == [2, 4]
    said = capsys.readouterr().err
    assert "warning: step 2 is skipped: the gradient of model.layers.0.self_attn.q_proj" in said
    assert "2 of 2 steps that may be" in said
    assert read_curves(trainer.journal._stage.folder).steps == [1, 2, 3, 4, 5], "evaluate reads it"


def test_a_skipped_step_leaves_weights_and_state_as_they_were(make_trainer: MakeTrainer):
    trainer = make_trainer(max_skipped_steps=4)
    breaks_gradient(trainer, 1, 2, 3, 4)

    def state() -> list[Any]:
        parts = trainer.state.parts
        groups = parts["optimizer"].state_dict()["state"]
        return copy.deepcopy([weights(trainer), groups, parts["clipper"].state_dict()])

    after_first: list[Any] = []
    trainer.optimizer.register_step_post_hook(lambda *_: after_first.extend(state()))
    trainer.run()
    torch.testing.assert_close(state(), after_first, rtol=0, atol=0)


@pytest.mark.parametrize("most", [0, 1])
def test_one_more_than_settings_allow_is_an_error_also_after_a_resume(
    make_trainer: MakeTrainer, most: int
):
    trainer = make_trainer(max_skipped_steps=most, checkpoint_interval=1)
    breaks_gradient(trainer, 1, 3)
    failed = 2 if most == 0 else 4
    count = r"\. Steps skipped before it, as max_skipped_steps allows: 1$" if most else "again$"
    for _ in range(2):
        with pytest.raises(UserError, match=rf"step {failed}: the gradient of .*{count}"):
            trainer.run()
        trainer = make_trainer(max_skipped_steps=most, checkpoint_interval=1)
        breaks_gradient(trainer, 1, 3)


def test_a_loss_that_is_not_finite_does_not_reach_the_clipper(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
):
    trainer = make_trainer(max_skipped_steps=1)
    backward = trainer._backward

    def broken(step: int) -> Any:
        totals = backward(step)
        if step == 2:
            object.__setattr__(totals, "objective", math.inf)
        return totals

    clipped = []
    clip = trainer.clipper.clip
    monkeypatch.setattr(trainer, "_backward", broken)
    monkeypatch.setattr(
        trainer.clipper, "clip", lambda p: clipped.append(trainer.state.step) or clip(p)
    )
    trainer.run()
    assert clipped == [0, 1, 3, 4]


def test_weights_that_are_broken_are_not_skipped_over(make_trainer: MakeTrainer):
    trainer = make_trainer(max_skipped_steps=4)

    def breaks(*_: Any) -> None:
        with torch.no_grad():
            trainer.model.get_parameter("model.norm.weight").fill_(math.nan)

    trainer.optimizer.register_step_post_hook(breaks)
    with pytest.raises(UserError, match=r"step 2: 32 values of model\.norm\.weight, before"):
        trainer.run()


def test_settings_that_let_every_step_be_skipped_are_refused(
    make_settings: Callable[..., QuantizedTrainingSettings],
):
    with pytest.raises(ValueError, match="max_skipped_steps is 5 and steps 5: all could be"):
        make_settings({"max_skipped_steps": 5})


def test_what_a_skipped_step_saw_clips_no_later_one(make_trainer: MakeTrainer):
    clipping = {"name": "muonclip", "muonclip": {"qk_clip_threshold": 0.001, "compute": "float32"}}
    settings = {"optimizer": clipping, "max_skipped_steps": 1, "checkpoint_interval": 1}

    def trained(name: str, stop: int | None = None) -> Trainer:
        trainer = make_trainer(name, **settings)
        trainer.hooks.append(_SpoilsOneStep(stop))
        with contextlib.suppress(Stopped):
            trainer.run()
        return trainer

    whole = trained("whole")
    trained("killed", stop=2)
    resumed = trained("killed")
    assert [entry.get("train/skipped") for entry in whole.state.history[:3]] == [None, 1.0, None]
    assert whole.state.history[2] == resumed.state.history[2]
    assert equal(weights(whole), weights(resumed))


class _SpoilsOneStep(Hook):
    """The gradient of the second step is not finite; before step ``stop`` the process is gone."""

    def __init__(self, stop: int | None) -> None:
        self._stop, self._step = stop, 0

    def on_start(self, training: Training) -> None:
        parameter = next(training.model.parameters())
        parameter.register_hook(lambda gradient: gradient * (math.nan if self._step == 1 else 1))

    def before_step(self, training: Training, step: int) -> dict[str, float]:
        self._step = step
        if step == self._stop:
            raise Stopped
        return {}
