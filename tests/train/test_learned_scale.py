"""A learned scale is trained, watched, saved and resumed like every other parameter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from wrinklefree.errors import UserError
from wrinklefree.mixture.loader import TrainingData
from wrinklefree.models.folder import load_model, save_model
from wrinklefree.models.surgery import insert_bitlinear, insert_subln
from wrinklefree.models.transforms import ternary
from wrinklefree.quant.settings import QuantizerSettings
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.in_stage import stage_trainer
from wrinklefree.train.loop import Trainer

MakeStage = Callable[..., Stage]
MakeSettings = Callable[..., Any]
ADAMW = {"optimizer": {"name": "adamw", "adamw": {"lr": 0.0009}}}


@pytest.fixture(params=["muon", "adamw"])
def start(
    request: pytest.FixtureRequest,
    make_stage: MakeStage,
    make_settings: MakeSettings,
    mixture: Path,
) -> Callable[..., Trainer]:
    """A training of a model whose rows have learned scales, by the name of its stage."""

    def build(name: str, granularity: str = "row", **changes: Any) -> Trainer:
        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=400, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        insert_subln(model)
        insert_bitlinear(
            model,
            QuantizerSettings.model_validate(
                {"scale": "learned", "granularity": granularity, "group_size": 64}
            ),
        )
        if request.param == "adamw":
            changes = {**ADAMW, **changes}
        settings = make_settings({"checkpoint_interval": 1, **changes})
        data = TrainingData(mixture, seed=7)
        return stage_trainer(make_stage(name), model, data, settings)

    return build


def alphas(trained: Trainer) -> dict[str, Tensor]:
    return {
        name: parameter.detach().clone()
        for name, parameter in trained.model.named_parameters()
        if name.endswith("alpha")
    }


@pytest.mark.parametrize("granularity", ["tensor", "head", "row", "group"])
def test_training_moves_every_scale(start: Callable[..., Trainer], granularity: str) -> None:
    trained = start("one", granularity)
    before = alphas(trained)
    trained.run()
    after = alphas(trained)
    assert len(before) == 7
    assert all(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("schedule", ["linear", "hard"])
@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_resumed_training_ends_with_the_same_scales_and_weights(
    start: Callable[..., Trainer], at: int, schedule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the first step on, in which nothing is quantized yet and no scale has a gradient."""
    changes = {"lambda_warmup.schedule": schedule}
    whole = start("whole", **changes)
    whole.run()
    first = start("broken", **changes)
    step = first._step

    def killed(number: int) -> dict[str, float]:
        if number == at:
            raise KeyboardInterrupt
        return step(number)

    first._step = killed  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = start("broken", **changes)
    second.run()
    assert f"going on from step {at}\n" in capsys.readouterr().err
    expected = dict(whole.model.named_parameters())
    for name, parameter in second.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert second.state.history == whole.state.history


def test_what_was_trained_is_read_back_and_trains_on(
    start: Callable[..., Trainer], mixture: Path, tmp_path: Path
) -> None:
    trained = start("one")
    trained.run()
    quantizer = QuantizerSettings(scale="learned", granularity="row", group_size=64)
    model_format = ternary(quantizer)
    save_model(tmp_path / "model", trained.model, model_format, mixture.parent / "tokenizer")
    loaded, _ = load_model(tmp_path / "model")
    expected = dict(trained.model.named_parameters())
    assert {name for name, _ in loaded.named_parameters()} == set(expected)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_a_scale_that_does_not_train_is_reported(start: Callable[..., Trainer]) -> None:
    trained = start("one")
    for name, parameter in trained.model.named_parameters():
        if name.endswith("up_proj.alpha"):
            parameter.register_hook(torch.zeros_like)
    with pytest.raises(UserError, match=r"up_proj\.alpha: its gradient was zero in every step"):
        trained.run()
