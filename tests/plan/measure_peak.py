"""What a training adds to the peak memory of a process, and what the plan says; for test_plan."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from wrinklefree.mixture.token_rows import TokenRows
from wrinklefree.models.surgery import insert_bitlinear, insert_subln
from wrinklefree.plan.memory import Training, memory_of
from wrinklefree.quant.settings import QuantizerSettings
from wrinklefree.train.loop import Trainer
from wrinklefree.train.settings import QuantizedTrainingSettings

CASES = {
    "wide": ({"vocab_size": 16384, "hidden_size": 512, "layers": 4}, 8, 256, "adamw", False),
    "long": ({"vocab_size": 2048, "hidden_size": 320, "layers": 10}, 4, 1024, "muon8bit", True),
}


def train(sizes: dict[str, int], rows: int, length: int, optimizer: str, checkpointing: bool):
    config = AutoConfig.for_model(
        "llama",
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        intermediate_size=3 * sizes["hidden_size"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=length,
    )
    settings = QuantizedTrainingSettings(
        steps=2,
        batch_size=rows,
        gradient_accumulation_steps=2,
        optimizer={"name": optimizer},  # pyright: ignore[reportArgumentType]
        schedule={"warmup_steps": 1},  # pyright: ignore[reportArgumentType]
        lambda_warmup={"warmup_steps": 1},  # pyright: ignore[reportArgumentType]
        activation_checkpointing=checkpointing,
    )
    quantizer = QuantizerSettings()
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    insert_subln(model)
    insert_bitlinear(model, quantizer)
    tokens = torch.randint(0, sizes["vocab_size"], (16, length))
    Trainer(model, TokenRows(tokens, seed=1), settings).run()
    return Training("t", settings, length, quantizer, None), config


def peak() -> int:
    # Not that of getrusage, which begins with the memory of the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def main() -> None:
    # Libraries load what they need on the first step.
    train({"vocab_size": 64, "hidden_size": 32, "layers": 1}, 2, 16, "muon8bit", True)
    before = peak()
    training, config = train(*CASES[sys.argv[1]])
    measured = peak() - before
    print(json.dumps({"measured": measured, "planned": memory_of(training, config).total}))


if __name__ == "__main__":
    main()
