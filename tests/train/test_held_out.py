from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wrinklefree.diffusion.settings import DiffusionSettings
from wrinklefree.mixture.loader import HeldOutData
from wrinklefree.models.layers import decoder_layers
from wrinklefree.models.losses import mean_next_token_loss
from wrinklefree.train.hooks import HeldOutLoss, QuantizationWarmup
from wrinklefree.train.journal import Silent
from wrinklefree.train.loop import Trainer
from wrinklefree.train.objectives.block_diffusion import BlockDiffusion
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.objectives.objective import Objective

MakeTrainer = Callable[..., Trainer]
MUONCLIP = {
    "name": "muonclip",
    "muonclip": {
        "lr": 0.0009, "adamw_lr": 0.0009, "weight_decay": 0.1, "qk_clip_threshold": 0.01,
    },
}  # fmt: skip
OBJECTIVES: dict[str, Callable[[], Any]] = {
    "causal": NextToken,
    "diffusion": lambda: BlockDiffusion(
        DiffusionSettings(
            block_size=4, mask_init="mean", token_shift="none", loss_weighting="elbo",
            complementary_masks=False,
        ),
        mask_token_id=399, seed=5,
    ),
}  # fmt: skip


@pytest.fixture
def make_trainer(make_trainer: MakeTrainer) -> MakeTrainer:
    def make(
        name: str = "one", objective: str = "causal", dropout: float = 0.1, **changes: Any
    ) -> Trainer:
        trainer = make_trainer(name, Objective(OBJECTIVES[objective]()), **changes)
        # No model that is trained may have any; it tells whether a measurement is one of training.
        for layer in decoder_layers(trainer.model):
            layer.get_submodule("self_attn").attention_dropout = dropout
        return trainer

    return make


def hook_of(trainer: Trainer, kind: type[Any]) -> Any:
    return next(hook for hook in trainer.hooks if isinstance(hook, kind))


def measure(trainer: Trainer) -> dict[str, float]:
    hook = hook_of(trainer, HeldOutLoss)
    return hook.measure(trainer.train_step, trainer.runtime, trainer.settings)


def held_out(trainer: Trainer) -> dict[float, dict[str, float]]:
    """By step, what was measured."""
    return {
        entry["step"]: {k: v for k, v in entry.items() if k.startswith("held_out/")}
        for entry in trainer.state.history
        if "held_out/loss" in entry
    }


@pytest.mark.parametrize(
    ("objective", "optimizer"), [("causal", None), ("diffusion", None), ("causal", MUONCLIP)]
)
def test_measuring_changes_nothing_of_the_training(
    make_trainer: MakeTrainer, objective: str, optimizer: dict[str, Any] | None
):
    changes = {"optimizer": optimizer} if optimizer else {}
    without = make_trainer("without", objective, **changes)
    without.run()
    random_state = torch.get_rng_state()
    measured = make_trainer("with", objective, **changes, evaluate_interval=2)
    measured.run()
    assert torch.equal(torch.get_rng_state(), random_state)
    for (name, one), other in zip(
        without.model.named_parameters(), measured.model.parameters(), strict=True
    ):
        assert torch.equal(one, other), name
    stripped = [
        {name: value for name, value in entry.items() if not name.startswith("held_out/")}
        for entry in measured.state.history
    ]
    assert stripped == without.state.history
    assert list(held_out(measured)) == [2, 4, 5], "every two steps, and the last one"
    for metrics in held_out(measured).values():
        names = {"held_out/loss", "held_out/loss/first", "held_out/loss/second"}
        assert metrics.keys() == names
    logged: Any = measured.journal._stage.run
    assert [step for step, metrics in logged.metrics if "held_out/loss/first" in metrics] == [
        2, 4, 5,
    ]  # fmt: skip


def test_it_is_the_loss_of_the_rows_that_the_settings_ask_for(
    make_trainer: MakeTrainer, mixture: Path
):
    trainer = make_trainer(evaluate_interval=1, evaluate_rows_per_domain=3)
    hook_of(trainer, QuantizationWarmup).before_step(trainer, 5)
    metrics = measure(trainer)
    data = HeldOutData(mixture)
    for domain in data.domains:
        batches = data.batches(domain, rows=3, batch_size=3)
        expected = mean_next_token_loss(trainer.model.eval(), batches, 1.0)
        assert metrics[f"held_out/loss/{domain}"] == pytest.approx(expected, rel=1e-5)
    by_domain = [metrics[f"held_out/loss/{domain}"] for domain in data.domains]
    assert min(by_domain) < metrics["held_out/loss"] < max(by_domain)


@pytest.mark.parametrize("mode", [True, False])
def test_the_model_stays_in_the_mode_it_was_in(make_trainer: MakeTrainer, mode: bool):
    trainer = make_trainer(evaluate_interval=1)
    trainer.train_step.train(mode)
    one = measure(trainer)
    assert trainer.model.training is mode
    assert measure(trainer) == one, "no dropout, no other masks"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_resumed_run_measures_the_same(
    make_trainer: MakeTrainer, objective: str, capsys: pytest.CaptureFixture[str]
):
    whole = make_trainer("whole", objective, 0.0, evaluate_interval=1)
    whole.run()
    first = make_trainer("cut", objective, 0.0, evaluate_interval=1)
    step = first._step

    def killed(number: int) -> dict[str, float]:
        if number == 3:
            raise ZeroDivisionError
        return step(number)

    first._step = killed  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ZeroDivisionError):
        first.run()
    second = make_trainer("cut", objective, 0.0, evaluate_interval=1)
    second.run()
    assert "going on from step 2" in capsys.readouterr().err
    assert second.state.history == whole.state.history


@pytest.mark.parametrize("label", ["stage2", "experiment.ingredients"])
def test_it_is_in_the_progress_line_of_80_columns(
    make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str], label: str
):
    trainer = make_trainer(evaluate_interval=3)
    trainer.journal = Silent(label)
    trainer.run()
    measured = held_out(trainer)
    lines = [line for line in capsys.readouterr().err.splitlines() if "held out" in line]
    assert ["3 of 5 steps" in lines[0], "5 of 5 steps" in lines[1]] == [True, True]
    for line, metrics in zip(lines, measured.values(), strict=True):
        assert f"held out {metrics['held_out/loss']:.3f}" in line
        assert line.startswith(f"{label}: ") and len(line) <= 80
