"""A mixture of domains that a small model learns in a few steps, and stages that run on it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wrinklefree.mixture.build import build_mixture
from wrinklefree.mixture.settings import MixtureSettings
from wrinklefree.models.settings import ModelSettings
from wrinklefree.tracking.artifact import Origin, writing_artifact
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.loop import Trainer

VOCABULARY = 300
FIRST_TOKEN = {"left": 20, "right": 120, "spare": 220}
WEIGHTS = {"left": 0.5, "right": 0.5, "spare": 0.0}

TRAINING: dict[str, Any] = {
    "steps": 12,
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "optimizer": {"name": "adamw", "adamw": {"lr": 0.01, "allow_unusual_lr": True}},
    "schedule": {"kind": "linear", "warmup_steps": 1, "final_lr_fraction": 0.0},
    "checkpoint_interval": 5,
    "log_interval": 100,
}
MODEL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "layers": 1,
    "heads": 1,
    "key_value_heads": 1,
    "rope_theta": 10000.0,
    "initializer_range": 0.02,
}
DRAW: dict[str, Any] = {"concentration_min": 2.0, "concentration_max": 4.0, "floor": 0.02}
FIT: dict[str, Any] = {
    "held_out_runs": 3,
    "regression": "log_linear",
    "candidates": 200,
    "best_candidates": 5,
    "bootstraps": 20,
}
MICROANNEAL_TRAINING = TRAINING | {"steps": 4, "checkpoint_interval": 2}
QUANTIZED = MICROANNEAL_TRAINING | {"lambda_warmup": {"warmup_steps": 2, "schedule": "linear"}}
SETTINGS: dict[str, Any] = {
    "seed": 1,
    "stage2": QUANTIZED,
    "distill": {
        "ar": QUANTIZED
        | {
            "weights": {"cross_entropy": 1.0, "logits": 1.0, "relations": 1.0},
            "temperature": 2.0,
            "temperature_squared": True,
            "relations": {"layer_fractions": [1.0], "heads": 1, "temperature": 1.0, "causal": True},
        }
    },
    "control": {"measure": {"rows_per_domain": 4, "batch_size": 3}, "confidence": 0.95},
    "finetune": {
        "questions": 30,
        "sequence_length": 24,
        "training": {
            "steps": 60,
            "batch_size": 8,
            "optimizer": {"name": "adamw", "adamw": {"lr": 0.01, "allow_unusual_lr": True}},
            "schedule": {"warmup_steps": 5},
            "log_interval": 100,
        },
        "distillation": {
            "weights": {"logits": 1.0, "relations": 1.0},
            "relations": {"heads": 1, "causal": True},
        },
    },
    "world_model": {
        "video": {"clips": 24, "held_out_clips": 3, "frames": 3, "size": 8},
        "tokenizer": {},
        "model": MODEL,
        "quantizer": {},
        "context_frames": 1,
        "decoding_passes": 3,
        "training": {
            "steps": 4,
            "batch_size": 4,
            "optimizer": {"name": "adamw", "adamw": {"lr": 0.01, "allow_unusual_lr": True}},
            "schedule": {"warmup_steps": 1},
            "lambda_warmup": {"warmup_steps": 2},
            "checkpoint_interval": 2,
            "log_interval": 100,
        },
    },
    "regmix": {
        "runs": [0, 1, 2, 3, 4, 5],
        "threads": 1,
        "draw": DRAW,
        "model": MODEL,
        "training": TRAINING,
        "measure": {"rows_per_domain": 4, "batch_size": 3},
        "fit": FIT,
    },
    "microanneal": {
        "arms": {"present": {}, "candidate": {}},
        "seeds": [0, 1],
        "threads": 1,
        "training": MICROANNEAL_TRAINING,
        "measure": {"rows_per_domain": 4, "batch_size": 3},
        "verdict": {"confidence": 0.95},
    },
    "experiments": {
        "names": ["tried"],
        "runs": {
            "seeds": [0, 1],
            "threads": 1,
            "model": MODEL,
            "steps": 12,
            "batch_size": 4,
            "measure": {"rows_per_domain": 4, "batch_size": 3},
        },
        "verdict": {"confidence": 0.95},
    },
}


@pytest.fixture(scope="session")
def shape() -> ModelSettings:
    """That of the models of :data:`SETTINGS`."""
    return ModelSettings(**MODEL)


@pytest.fixture(scope="session")
def mixture(
    tokenizer: Path,
    write_tokens: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Documents that count through 20 tokens of their domain, in rows of 32."""
    root = tmp_path_factory.mktemp("mixture")
    generator = np.random.default_rng(0)
    tokens = {}
    for name, first in FIRST_TOKEN.items():
        tokens[name] = root / name
        tokens[name].mkdir()
        documents = {}
        for split, count in (("train", 200), ("held_out", 8)):
            starts = generator.integers(0, 20, size=count)
            documents[split] = [[first + (s + i) % 20 for i in range(31)] for s in starts]
        write_tokens(tokens[name], name, documents, VOCABULARY)
    folder = root / "mixture"
    folder.mkdir()
    settings = MixtureSettings(sequence_length=32, shuffle_buffer_size=50, weights=WEIGHTS)
    build_mixture(settings, tokens, tokenizer, folder)
    return folder


@pytest.fixture
def make_stage(new_stage: Callable[..., Stage], tmp_path: Path) -> Callable[..., Stage]:
    """``make_stage(name, instance, inputs, changes)``: a stage in new folders.

    ``changes``: to :data:`SETTINGS`, by dotted path. ``work``: that of a stage that was killed.
    """
    made = itertools.count()

    def make(
        name: str,
        instance: str | None = None,
        inputs: dict[str, Path] | None = None,
        changes: dict[str, Any] | None = None,
        work: Path | None = None,
    ) -> Stage:
        root = tmp_path / f"stage-{next(made)}"
        settings = changed(SETTINGS, changes or {})
        return new_stage(root, name, instance, settings=settings, inputs=inputs, work=work)

    return make


def changed(values: Any, changes: dict[str, Any], path: str = "") -> Any:
    """A deep copy of ``values`` with other ones at dotted paths."""
    if path in changes:
        return changes[path]
    if not isinstance(values, dict):
        return values
    prefix = f"{path}." if path else ""
    copied = {key: changed(value, changes, f"{prefix}{key}") for key, value in values.items()}
    for other in changes:
        parent, _, key = other.rpartition(".")
        if parent == path and key not in copied:
            copied[key] = changes[other]
    return copied


@pytest.fixture
def dies_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """``dies_at(count)``: that step from now on is killed. Fills a list with the steps begun."""

    def arrange(count: int) -> list[int]:
        steps: list[int] = []
        take_step = Trainer._step

        def dying_step(trainer: Trainer, step: int) -> Any:
            steps.append(step)
            if len(steps) == count:
                raise KeyboardInterrupt
            return take_step(trainer, step)

        monkeypatch.setattr(Trainer, "_step", dying_step)
        return steps

    return arrange


@pytest.fixture
def as_artifact(tmp_path: Path) -> Callable[..., Path]:
    """Make what a stage wrote an artifact, as the frame of the stages does."""

    def make(stage: Stage, facts: dict[str, Any], **origin: Any) -> Path:
        path = tmp_path / "artifacts" / stage.name / (stage.instance or "all")
        inputs = origin.get("inputs", {"mixture": "digest"})
        settings = origin.get("settings", stage.settings)
        made = Origin(stage.name, inputs, settings)
        with writing_artifact(path, made) as (folder, written):
            for file in stage.folder.rglob("*"):
                if file.is_file():
                    target = folder / file.relative_to(stage.folder)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.read_bytes())
            written.update(facts)
        return path

    return make
