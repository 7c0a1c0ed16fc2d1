"""Weights that follow what the domains do for held-out text, on domains that are planted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaConfig, LlamaForCausalLM

from wrinklefree.errors import UserError
from wrinklefree.mixture.build import build_mixture
from wrinklefree.mixture.loader import TrainingData
from wrinklefree.mixture.settings import MixtureSettings
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.in_stage import stage_trainer
from wrinklefree.train.loop import Trainer
from wrinklefree.train.settings import TrainingSettings

PRIOR = {"wanted": 0.4, "helpful": 0.3, "noise": 0.3}
INFLUENCE = {
    "enabled": True, "interval": 10, "rows_per_domain": 8, "step_size": 5.0, "smoothing": 0.5,
    "floor": 0.05, "target": {"wanted": 1.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def planted(
    save_tokenizer: Callable[[Path, list[str]], None],
    write_tokens: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Two domains that count through 20 tokens, and one of the same tokens in no order.

    Beside it is ``fewer``, without the latter.
    """
    root = tmp_path_factory.mktemp("planted")
    generator = np.random.default_rng(0)
    (root / "tokenizer").mkdir()
    save_tokenizer(root / "tokenizer", ["<|endoftext|>"])
    tokens = {}
    for name in PRIOR:
        documents = {}
        for split, count in (("train", 200), ("held_out", 16)):
            starts = generator.integers(0, 20, size=count)
            counting = [[20 + (start + i) % 20 for i in range(31)] for start in starts]
            drawn = generator.integers(20, 40, size=(count, 31)).tolist()
            documents[split] = drawn if name == "noise" else counting
        tokens[name] = root / name
        tokens[name].mkdir()
        write_tokens(tokens[name], name, documents, 300)
    for folder, weights in (("mixture", PRIOR), ("fewer", {"wanted": 0.5, "helpful": 0.5})):
        (root / folder).mkdir()
        settings = MixtureSettings(
            sequence_length=32, shuffle_buffer_size=50, weights=weights, max_repetition=10
        )
        read = {name: tokens[name] for name in weights}
        build_mixture(settings, read, root / "tokenizer", root / folder)
    return root / "mixture"


def settings(**changes: Any) -> TrainingSettings:
    values: dict[str, Any] = {
        "steps": 60,
        "batch_size": 8,
        "optimizer": {"name": "adamw", "adamw": {"lr": 0.005, "allow_unusual_lr": True}},
        "schedule": {"kind": "constant", "warmup_steps": 2},
        "data": {"influence": INFLUENCE},
        "checkpoint_interval": 7,
        "log_interval": 100,
    }
    return TrainingSettings.model_validate({**values, **changes})


def influence(**changes: Any) -> dict[str, Any]:
    return {"data": {"influence": {**INFLUENCE, **changes}}}


@pytest.fixture
def make_trainer(make_stage: Callable[..., Stage], planted: Path) -> Callable[..., Trainer]:
    def make(name: str = "one", mixture: Path = planted, **changes: Any) -> Trainer:
        torch.manual_seed(1)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                num_attention_heads=2, num_key_value_heads=1,
            )
        )  # fmt: skip
        stage = replace(make_stage(name), inputs={"mixture": mixture})
        data = TrainingData(mixture, seed=3)
        return stage_trainer(stage, model, data, settings(**changes))

    return make


def weights_over_time(trainer: Trainer) -> list[dict[str, float]]:
    prefix = "train/weight/"
    return [
        {k.removeprefix(prefix): v for k, v in entry.items() if k.startswith(prefix)}
        for entry in trainer.state.history
    ]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_noise_loses_weight_and_what_helps_gains(
    make_trainer: Callable[..., Trainer], optimizer: str
):
    changes = {"optimizer": {"name": "muon", "muon": {"lr": 0.003, "adamw_lr": 0.003}}}
    trainer = make_trainer(**(changes if optimizer == "muon" else {}))
    facts = trainer.run()
    weights = weights_over_time(trainer)
    assert weights[0] == weights[9] == PRIOR
    assert weights[-1]["noise"] < 0.75 * PRIOR["noise"]
    assert weights[-1]["helpful"] > 1.05 * PRIOR["helpful"]
    assert [event["step"] for event in facts["influence"]] == [10, 20, 30, 40, 50]
    assert [event["first_sample"] for event in facts["influence"]] == [80, 160, 240, 320, 400]
    assert facts["influence"][-1]["weights"] == weights[-1]
    read = trainer.data.epochs(60 * 8)  # pyright: ignore[reportAttributeAccessIssue]
    assert facts["epochs"] == read and read["noise"] < read["helpful"]


def test_switched_off_nothing_moves(make_trainer: Callable[..., Trainer]):
    trainer = make_trainer(**influence(enabled=False))
    facts = trainer.run()
    assert all(weights == PRIOR for weights in weights_over_time(trainer))
    assert "influence" not in facts


def test_a_step_that_is_cut_off_has_the_scores_of_its_update(
    make_trainer: Callable[..., Trainer], stop_within: Callable[[Trainer, int], None]
):
    whole = make_trainer("whole", steps=12)
    expected = whole.run()
    stop_within(make_trainer("cut", steps=12), 10)
    resumed = make_trainer("cut", steps=12)
    assert resumed.run() == expected
    assert resumed.state.history == whole.state.history


def test_a_training_that_continues_on_more_domains_updates_all_of_them(
    make_trainer: Callable[..., Trainer],
    go_on_from: Callable[[Trainer, Trainer], None],
    planted: Path,
):
    old = make_trainer("old", planted.parent / "fewer", steps=15)
    assert len(old.run()["influence"]) == 1
    new = make_trainer("new", steps=25)
    go_on_from(new, old)
    (update,) = new.run()["influence"]
    assert update["step"] == 20 and update["weights"].keys() == PRIOR.keys()


@pytest.mark.parametrize("stop_in", [10, 12, 36], ids="in step {}".format)
def test_a_resumed_run_repeats_the_updates_and_ends_with_the_same_bytes(
    make_trainer: Callable[..., Trainer], stop_in: int
):
    whole = make_trainer("whole", steps=40)
    expected = whole.run()
    first = make_trainer("cut", steps=40)

    def stop(*_: Any) -> None:
        if first.state.step == stop_in:
            raise KeyboardInterrupt

    first.optimizer.register_step_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = make_trainer("cut", steps=40)
    assert second.run() == expected
    assert second.state.history == whole.state.history
    for one, other in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "change",
    [
        {"interval": 15},
        {"rows_per_domain": 2},
        {"step_size": 1.0},
        {"smoothing": 0.0},
        {"floor": 0.2},
        {"target": {"noise": 1.0}},
        {"target": None},
        {"target": {"wanted": 0.1, "noise": 0.9}},
    ],
    ids=str,
)
def test_every_setting_changes_the_weights(
    make_trainer: Callable[..., Trainer], change: dict[str, Any]
):
    usual = make_trainer("usual", steps=32).run()["influence"]
    other = make_trainer("other", steps=32, **influence(**change)).run()["influence"]
    assert usual[-1]["weights"] != other[-1]["weights"]


def test_shares_of_the_target_weigh_its_domains(make_trainer: Callable[..., Trainer]):
    found = [
        make_trainer(
            f"{share}", steps=12, **influence(target={"wanted": share, "noise": 1 - share})
        )
        for share in (0.9, 0.1)
    ]
    assert found[0].run()["influence"] != found[1].run()["influence"]


def test_each_update_reads_other_rows(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
):
    read: list[bytes] = []
    plain = TrainingData.domain_batch

    def reading(self: TrainingData, *arguments: Any, **how: Any) -> Any:
        batch = plain(self, *arguments, **how)
        read.append(batch.tokens_BT.numpy().tobytes())
        return batch

    monkeypatch.setattr(TrainingData, "domain_batch", reading)
    make_trainer(steps=32).run()
    assert len(read) == len(set(read)) == 9


def test_measuring_leaves_training_as_it_is(make_trainer: Callable[..., Trainer]):
    """With a step size of 0 and no floor the weights stay, and so does every byte."""
    clip = {"name": "muonclip", "muonclip": {"lr": 0.003, "adamw_lr": 0.003,
                                             "qk_clip_threshold": 0.05}}  # fmt: skip
    still = make_trainer("still", steps=25, optimizer=clip, **influence(step_size=0.0, floor=0.0))
    without = make_trainer("without", steps=25, optimizer=clip, **influence(enabled=False))
    still.run()
    without.run()
    for one, other in zip(still.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_weights_that_would_repeat_a_domain_too_often_are_not_taken(
    make_trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
):
    trainer = make_trainer(**influence(step_size=300.0, floor=0.0))
    trainer.data.max_repetition = 1.3  # pyright: ignore[reportAttributeAccessIssue]
    trainer.run()
    assert "weights stay, for others would read domain" in capsys.readouterr().err
    assert max(trainer.data.epochs(60 * 8).values()) <= 1.3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"floor": 0.34}, "floor 0.34 of 3 domains leaves nothing"),
        ({"target": {"poems": 1.0}}, "target names poems"),
    ],
)
def test_what_does_not_go_with_the_domains_is_refused_before_training(
    make_trainer: Callable[..., Trainer], change: dict[str, Any], message: str
):
    with pytest.raises(UserError, match=message):
        make_trainer(**influence(**change))


def test_a_sorted_order_and_moving_weights_exclude_each_other():
    with pytest.raises(ValidationError, match="influence.enabled changes which rows are read"):
        settings(data={"order": "length", "influence": INFLUENCE})
