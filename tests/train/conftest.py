"""A small real mixture, and stages that run on it."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from wrinklefree.mixture.build import build_mixture
from wrinklefree.mixture.loader import TrainingData
from wrinklefree.mixture.settings import MixtureSettings
from wrinklefree.models.surgery import insert_bitlinear
from wrinklefree.quant.settings import QuantizerSettings
from wrinklefree.text.documents.settings import GeneratedSource, HeldOutSettings
from wrinklefree.text.sources.fetch import fetch_source
from wrinklefree.tokens.settings import BpeTokenizerSettings, TokenizeSettings
from wrinklefree.tokens.tokenize import tokenize_source
from wrinklefree.tokens.train_bpe import train_tokenizer
from wrinklefree.tracking.stage import Stage
from wrinklefree.tracking.trainings import checkpoints_in
from wrinklefree.train.hooks import Hook, Training
from wrinklefree.train.in_stage import stage_trainer
from wrinklefree.train.loop import Trainer
from wrinklefree.train.objectives.objective import Objective
from wrinklefree.train.settings import QuantizedTrainingSettings


@pytest.fixture(scope="session")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains of generated questions, rows of 32 tokens."""
    root = tmp_path_factory.mktemp("mixture")
    raw: dict[str, Path] = {}
    for seed, name in enumerate(("first", "second")):
        source = GeneratedSource(
            kind="generated", domain=name, licence="ours", generator="mathematics",
            documents=60, seed=seed,
        )  # fmt: skip
        raw[name] = root / "raw" / name
        raw[name].mkdir(parents=True)
        fetch_source(name, source, HeldOutSettings(fraction=0.2), raw[name], cache=root)
    tokenizer = root / "tokenizer"
    tokenizer.mkdir()
    bpe = BpeTokenizerSettings(kind="bpe", vocabulary_size=400, max_megabytes_per_source=1)
    train_tokenizer(bpe, raw, tokenizer)
    tokens: dict[str, Path] = {}
    for name, folder in raw.items():
        tokens[name] = root / "tokens" / name
        tokens[name].mkdir(parents=True)
        work = root / "work" / name
        tokenize_source(TokenizeSettings(), folder, tokenizer, tokens[name], work=work)
    folder = root / "mixture"
    folder.mkdir()
    settings = MixtureSettings(
        sequence_length=32, shuffle_buffer_size=100, weights={"first": 0.25, "second": 0.75}
    )
    build_mixture(settings, tokens, tokenizer, folder)
    return folder


@pytest.fixture
def make_stage(new_stage: Callable[..., Stage], tmp_path: Path) -> Callable[..., Stage]:
    """Stages with folders of their own, told apart by ``name``."""

    def make(name: str = "one", **settings: Any) -> Stage:
        return new_stage(tmp_path / name, "stage2", settings={"seed": 1, **settings})

    return make


SETTINGS: dict[str, Any] = {
    "steps": 5,
    "batch_size": 2,
    "gradient_accumulation_steps": 2,
    "optimizer": {
        "name": "muon",
        "muon": {"lr": 0.0009, "adamw_lr": 0.0009, "weight_decay": 0.1},
    },
    "schedule": {"kind": "cosine", "warmup_steps": 2, "final_lr_fraction": 0.1},
    "clipping": {
        "name": "zclip",
        "zclip": {"z_threshold": 0.01, "ema_decay": 0.9, "warmup_steps": 2},
    },
    "lambda_warmup": {"warmup_steps": 3, "schedule": "linear"},
    "checkpoint_interval": 2,
    "log_interval": 5,
}


@pytest.fixture
def make_settings() -> Callable[..., QuantizedTrainingSettings]:
    """Training settings with dotted changes, as ``schedule.kind="linear"``."""

    def make(changes: dict[str, Any] | None = None) -> QuantizedTrainingSettings:
        values = copy.deepcopy(SETTINGS)
        for path, value in (changes or {}).items():
            target = values
            *parents, last = path.split(".")
            for key in parents:
                target = target[key]
            target[last] = value
        return QuantizedTrainingSettings(**values)

    return make


@pytest.fixture
def make_trainer(
    make_stage: Callable[..., Stage],
    make_settings: Callable[..., QuantizedTrainingSettings],
    mixture: Path,
) -> Callable[..., Trainer]:
    """Trainings of a small ternary model in stages told apart by name, with changes as above."""

    def make(
        name: str = "one",
        objective: Objective | None = None,
        *,
        shape: dict[str, Any] | None = None,
        quantizer: QuantizerSettings | None = None,
        **changes: Any,
    ) -> Trainer:
        torch.manual_seed(3)
        sizes = {
            "vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1,
        }  # fmt: skip
        model = LlamaForCausalLM(LlamaConfig(**sizes | (shape or {})))
        insert_bitlinear(model, quantizer or QuantizerSettings())
        stage = replace(make_stage(name), inputs={"mixture": mixture})
        data = TrainingData(mixture, seed=7)
        return stage_trainer(stage, model, data, make_settings(changes), objective)

    return make


@pytest.fixture
def stop_within() -> Callable[[Trainer, int], None]:
    """Runs a training until Ctrl-C comes within a step, from 0, behind all that comes before it."""

    class Interrupts(Hook):
        def __init__(self, step: int) -> None:
            self.step = step

        def before_step(self, training: Training, step: int) -> dict[str, float]:
            if step == self.step:
                signal.raise_signal(signal.SIGINT)
            return {}

    def stop(trainer: Trainer, step: int) -> None:
        trainer.hooks.append(Interrupts(step))
        with pytest.raises(KeyboardInterrupt):
            trainer.run()

    return stop


@pytest.fixture
def go_on_from() -> Callable[[Trainer, Trainer], None]:
    """Has a training take over the last checkpoint of another one, as ``wrinklefree continue``."""

    class Adopts(Hook):
        def __init__(self, other: Trainer) -> None:
            assert other.folder
            self.step, self.checkpoint = checkpoints_in(other.folder)[-1]

        def on_start(self, training: Training) -> None:
            training.state.adopt(self.checkpoint, self.step)

    return lambda trainer, other: trainer.hooks.insert(0, Adopts(other))


@pytest.fixture
def check_that_runs_are_the_same() -> Callable[[Callable[..., Trainer]], None]:
    """Checks that neither a second run of a training nor activation checkpointing changes a bit."""

    def check(make_trainer: Callable[..., Trainer]) -> None:
        ends: list[list[Tensor]] = []
        histories = []
        for checkpointing in (False, False, True):
            trainer = make_trainer(activation_checkpointing=checkpointing)
            trainer.run()
            ends.append([parameter.detach() for parameter in trainer.model.parameters()])
            histories.append(trainer.state.history)
        for other in (1, 2):
            assert all(map(torch.equal, ends[0], ends[other]))
            assert histories[0] == histories[other]

    return check
