from __future__ import annotations

import io
import math
import shutil
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.kernels import capabilities
from wrinklefree.kernels.ternary_linear import products
from wrinklefree.optim.schedule import learning_rate_fraction
from wrinklefree.quant.bitlinear import BitLinear, set_quantization_lambda
from wrinklefree.train.history import read_history
from wrinklefree.train.loop import Trainer
from wrinklefree.train.totals import domain_metrics

MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def make_trainer(make_trainer: MakeTrainer) -> MakeTrainer:
    return partial(make_trainer, shape={"num_hidden_layers": 2, "tie_word_embeddings": True})


def weights(trained: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trained.model.named_parameters()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def reference(make_trainer: MakeTrainer) -> Trainer:
    trained = make_trainer("reference")
    trained.run()
    return trained


EFFECTS: list[tuple[str, Any]] = [
    ("steps", 6),
    ("batch_size", 3),
    ("gradient_accumulation_steps", 3),
    ("optimizer.muon.lr", 0.0008),
    ("optimizer.muon.adamw_lr", 0.0008),
    ("optimizer.muon.scale", "original"),
    ("optimizer.muon.weight_decay", 0.0),
    ("optimizer.muon.momentum", 0.9),
    ("optimizer.muon.nesterov", False),
    ("optimizer.muon.adamw_betas", [0.8, 0.95]),
    ("optimizer.muon.adamw_eps", 1e-4),
    ("schedule.kind", "linear"),
    ("schedule.warmup_steps", 1),
    ("schedule.final_lr_fraction", 0.2),
    ("clipping.name", "none"),
    ("clipping.name", "adagc"),
    ("clipping.name", "fixed"),
    ("clipping.zclip.z_threshold", 9.0),
    ("clipping.zclip.ema_decay", 0.5),
    ("clipping.zclip.warmup_steps", 3),
    ("clipping.zclip.reopen_after", 1),
    ("precision", "bfloat16"),
    ("lambda_warmup.warmup_steps", 4),
    ("lambda_warmup.schedule", "cosine"),
]


@pytest.mark.filterwarnings("ignore::wrinklefree.optim.settings.UnusualLearningRateWarning")
@pytest.mark.parametrize(("path", "value"), EFFECTS, ids=[path for path, _ in EFFECTS])
def test_every_setting_changes_the_result(
    path: str, value: Any, reference: Trainer,
    make_trainer: MakeTrainer,
):  # fmt: skip
    changes = {path: value}
    if path == "optimizer.muon.scale":
        changes |= {"optimizer.muon.lr": 0.002}
    trained = make_trainer(**changes)
    trained.run()
    assert not equal(weights(trained), weights(reference))


@pytest.mark.parametrize("path", ["checkpoint_interval", "log_interval"])
def test_intervals_do_not_change_the_result(
    path: str, reference: Trainer, make_trainer: MakeTrainer
):
    trained = make_trainer(**{path: 1})
    trained.run()
    assert equal(weights(trained), weights(reference))


def test_the_same_run_twice_is_the_same_to_the_bit(reference: Trainer, make_trainer: MakeTrainer):
    trained = make_trainer()
    trained.run()
    assert equal(weights(trained), weights(reference))
    assert trained.state.history == reference.state.history


@pytest.mark.parametrize("at", [1, 3, 4], ids=["before a checkpoint", "after one", "after two"])
def test_a_resumed_run_ends_like_one_that_was_not_interrupted(
    at: int, reference: Trainer, make_trainer: MakeTrainer
):
    first = make_trainer()
    step = first._step

    def killed(number: int) -> dict[str, float]:
        if number == at:
            raise KeyboardInterrupt
        return step(number)

    first._step = killed  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = make_trainer()
    facts = second.run()
    assert equal(weights(second), weights(reference))
    stage: Any = second.journal._stage  # pyright: ignore[reportAttributeAccessIssue]
    assert read_history(stage.folder) == reference.state.history
    assert facts["steps"] == 5
    logged = stage.run.metrics
    steps = {step: metrics["train/loss"] for step, metrics in logged if "train/loss" in metrics}
    assert steps == {entry["step"]: entry["train/loss"] for entry in reference.state.history}


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    reference: Trainer, make_trainer: MakeTrainer
):
    damaged = make_trainer()
    damaged.run()
    newest = max(damaged.folder.glob("step-*"))
    with (newest / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    again = make_trainer()
    (complaint,) = again.state.restore(again.folder)
    assert "content differs" in complaint
    assert again.state.step == 4
    again.run()
    assert equal(weights(again), weights(reference))


@pytest.mark.parametrize("named", products.PRODUCTS)
def test_a_training_says_what_multiplies_and_its_bytes_do_not_depend_on_it(
    named: str, reference: Trainer, monkeypatch: pytest.MonkeyPatch,
    make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.setenv(products.VARIABLE, named)
    trainer = make_trainer()
    trainer.run()
    assert f"ternary products in {named}\n" in capsys.readouterr().err
    assert equal(weights(trainer), weights(reference))


@pytest.mark.parametrize(("fast", "found"), [(True, "bfloat16"), (False, "fp32")])
def test_auto_is_what_the_machine_multiplies_fast_and_no_training_changes_over(
    fast: bool, found: str, reference: Trainer, monkeypatch: pytest.MonkeyPatch,
    make_trainer: MakeTrainer,
):  # fmt: skip
    monkeypatch.setattr(
        capabilities, "multiplies_faster", lambda kind, device: kind == "int8" or fast
    )
    first = make_trainer(precision="auto")
    assert first.run()["precision"] == found
    assert equal(weights(first), weights(reference)) == (not fast)
    monkeypatch.setattr(capabilities, "multiplies_faster", lambda kind, device: not fast)
    elsewhere = make_trainer(precision="auto")
    complaints = elsewhere.state.restore(elsewhere.folder)
    assert complaints and all(f"set precision: {found}" in line for line in complaints)
    assert elsewhere.state.step == 0


def test_two_checkpoints_are_kept(make_trainer: MakeTrainer):
    trained = make_trainer(checkpoint_interval=1)
    trained.run()
    assert [path.name for path in sorted(trained.folder.iterdir())] == [
        "history.jsonl",
        "step-00000004",
        "step-00000005",
    ]


def test_accumulating_micro_batches_is_one_large_batch(make_trainer: MakeTrainer):
    results = []
    for name, batch, accumulation in (("a", 4, 1), ("b", 1, 4)):
        changes = {"batch_size": batch, "gradient_accumulation_steps": accumulation}
        trained = make_trainer(name, **changes)
        set_quantization_lambda(trained.model, 0.0)
        trained._backward(0)
        results.append([p.grad for p in trained.model.parameters()])
    for one, other in zip(*results, strict=True):
        assert one is not None and other is not None
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_history_has_the_promised_metrics_and_they_are_consistent(
    reference: Trainer,
):
    history = reference.state.history
    names = set().union(*history)
    assert {
        "step", "tokens", "train/loss", "train/learning_rate", "train/lambda",
        "train/grad_norm_raw", "train/grad_norm_clipped", "train/grad_norm", "train/grad_clipped",
        "train/zclip_ema_mean", "train/zclip_ema_std", "train/loss/first", "train/loss/second",
        "train/share/first", "train/share/second", "train/loss_variance",
        "train/loss_variance_within", "train/loss_variance_between",
    } <= names  # fmt: skip
    assert [entry["step"] for entry in history] == [1, 2, 3, 4, 5]
    assert [entry["train/lambda"] for entry in history] == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
    assert history[0]["train/learning_rate"] == pytest.approx(0.00045)
    assert any(entry["train/grad_clipped"] for entry in history)
    for entry in history:
        assert entry["train/grad_norm_clipped"] <= entry["train/grad_norm_raw"] * (1 + 1e-6)
        assert entry["train/grad_norm"] == entry["train/grad_norm_clipped"]
        domains = [value for name, value in entry.items() if name.startswith("train/loss/")]
        assert min(domains) - 1e-6 <= entry["train/loss"] <= max(domains) + 1e-6
        mean = sum(
            entry[f"train/share/{name}"] * entry[f"train/loss/{name}"]
            for name in ("first", "second")
            if f"train/share/{name}" in entry
        )
        assert mean == pytest.approx(entry["train/loss"], rel=1e-9)
        parts = entry["train/loss_variance_within"] + entry["train/loss_variance_between"]
        assert parts == entry["train/loss_variance"]
    assert history[0]["train/loss"] == pytest.approx(math.log(400), rel=0.1)


def test_the_split_of_a_step_is_that_of_its_rows_in_closed_form():
    # Nats per token: a has 1 and 3 over 10 tokens each, b 6 over 20; a row without tokens is none.
    loss_B, tokens_B = torch.tensor([[10.0, 30.0, 120.0, 0.0], [10.0, 10.0, 20.0, 0.0]]).double()
    metrics = domain_metrics(loss_B, tokens_B, torch.tensor([1, 1, 2, 0]), ["none", "a", "b"])
    assert metrics == {
        "train/loss/a": 2.0,
        "train/share/a": 0.5,
        "train/loss/b": 6.0,
        "train/share/b": 0.5,
        "train/loss_variance": 4.5,
        "train/loss_variance_within": 0.5,
        "train/loss_variance_between": 4.0,
    }


def test_the_split_of_a_step_is_over_the_rows_of_all_its_micro_batches(make_trainer: MakeTrainer):
    splits = []
    for name, batch, accumulation in (("a", 8, 1), ("b", 2, 4)):
        changes = {"batch_size": batch, "gradient_accumulation_steps": accumulation}
        trained = make_trainer(name, **changes)
        set_quantization_lambda(trained.model, 0.0)
        splits.append(trained._backward(0).domains)
    assert splits[0] == pytest.approx(splits[1], rel=1e-4)
    assert splits[0]["train/loss_variance_within"] > 0
    assert splits[0]["train/loss_variance_between"] > 0


def test_the_model_is_fully_quantized_at_the_end(reference: Trainer):
    strengths = {
        module.quantization_lambda
        for module in reference.model.modules()
        if isinstance(module, BitLinear)
    }
    assert strengths == {1.0}


def test_a_model_in_bfloat16_is_refused(make_trainer: MakeTrainer):
    given = make_trainer()
    with pytest.raises(UserError, match="torch.bfloat16, and training needs float32"):
        Trainer(given.model.bfloat16(), given.data, given.settings)


def test_a_frozen_parameter_stops_the_stage(make_trainer: MakeTrainer):
    trained = make_trainer()
    trained.model.model.layers[1].mlp.up_proj.weight.register_hook(torch.zeros_like)
    trained.optimizer.param_groups[0]["weight_decay"] = 0.0
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.weight: its gradient was zero"):
        trained.run()


def test_a_gradient_that_is_not_finite_stops_before_the_step_and_keeps_the_checkpoint(
    make_trainer: MakeTrainer,
):
    trained = make_trainer()
    weight = trained.model.model.layers[0].self_attn.q_proj.weight
    weight.register_hook(lambda g: g * (math.nan if trained.state.step == 3 else 1.0))
    before: dict[str, Tensor] = {}

    def remember(*_: Any) -> None:
        before.update(weights(trained))

    trained.optimizer.register_step_post_hook(remember)
    with pytest.raises(UserError, match=r"step 4: the gradient of model\.layers\.0\.self_attn\.q"):
        trained.run()
    assert equal(weights(trained), before)
    assert [path.name for path in trained.folder.glob("step-*")] == ["step-00000002"]


def break_weight(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, :3] = math.nan


def break_positions(model: PreTrainedModel) -> None:
    model.model.rotary_emb.inv_freq.fill_(math.inf)


def break_scale(model: PreTrainedModel) -> None:
    """Finite weights whose gradients are not."""
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(3e38)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_weight, r"3 values of model\.layers\.1\.mlp\.up_proj\.weight, before the step"),
        (break_positions, r"8 values of model\.rotary_emb\.inv_freq, before the step"),
        (break_scale, r"the gradient of .* is not finite"),
    ],
)
def test_before_the_first_update_the_model_is_to_blame_and_not_the_learning_rate(
    make_trainer: MakeTrainer,
    damage: Callable[[PreTrainedModel], None], message: str,
):  # fmt: skip
    trained = make_trainer()
    damage(trained.model)
    with pytest.raises(UserError, match=rf"step 1: {message}.*model's weights") as raised:
        trained.run()
    assert "Lower the learning rate" not in str(raised.value)


def test_weights_that_an_update_broke_are_named_and_the_learning_rate_is_to_blame(
    make_trainer: MakeTrainer,
):
    trained = make_trainer()

    def diverge(*_: Any) -> None:
        if trained.state.step == 2:
            break_weight(trained.model)

    trained.optimizer.register_step_post_hook(diverge)
    message = r"step 4: 3 values of .*up_proj\.weight, before the step, .*Lower the learning rate"
    with pytest.raises(UserError, match=message):
        trained.run()


def test_every_stage_step_reaches_tracking_with_its_speed(make_trainer: MakeTrainer):
    trained = make_trainer()
    trained.run()
    logged: list[tuple[int, dict[str, float]]] = trained.journal._stage.run.metrics
    steps = [step for step, metrics in logged if "train/loss" in metrics]
    assert steps == [1, 2, 3, 4, 5]
    assert all(m["train/tokens_per_second"] > 0 for _, m in logged if "train/loss" in m)
    assert any("movement/smallest_ratio" in metrics for _, metrics in logged)
    tokens = [metrics["train/tokens"] for _, metrics in logged if "train/loss" in metrics]
    assert tokens == [entry["tokens"] for entry in trained.state.history]


def test_what_is_told_of_a_training_is_of_what_it_read(make_trainer: MakeTrainer):
    rates = {"lr": 0.002, "adamw_lr": 0.0009, "weight_decay": 0.1}
    trained = make_trainer(optimizer={"name": "muon", "muon": rates})
    entries: list[tuple[float, float]] = []

    def note(*_: Any) -> None:
        gradients = [p.grad for p in trained.model.parameters() if p.grad is not None]
        entries.append(
            (max(g.max().item() for g in gradients), min(g.min().item() for g in gradients))
        )

    trained.optimizer.register_step_pre_hook(note)
    facts, history, read = trained.run(), trained.state.history, 0
    for step, entry in enumerate(history):
        masks = [trained.batch(step, index).document_ids_BT >= 0 for index in range(2)]
        read += sum(int(mask.sum()) for mask in masks)
        fraction = learning_rate_fraction(step, 5, trained.settings.schedule)
        assert entry["tokens"] == read
        assert entry["train/learning_rate"] == pytest.approx(0.002 * fraction)
        assert (entry["train/grad_largest"], entry["train/grad_smallest"]) == entries[step]
    clipped = sum(entry["train/grad_clipped"] for entry in history)
    assert facts["tokens"] == read and facts["steps_clipped"] == clipped
    assert 0 < clipped < 5


class Screen(io.StringIO):
    """A terminal of 80 columns."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Screen, io.StringIO])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(
    stream: type[io.StringIO], make_trainer: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_: (80, 24))
    output = stream()
    trained = make_trainer(log_interval=2)
    monkeypatch.setattr(sys, "stderr", output)
    trained.run()
    text = output.getvalue()
    assert "loss " in text and "tokens/s" in text
    assert ("\r" in text) == (stream is Screen)
    if stream is not Screen:
        lines = [line.partition(": ")[2].split(" (")[0] for line in text.splitlines()]
        assert lines == ["2 of 5 steps", "4 of 5 steps", "5 of 5 steps"]
