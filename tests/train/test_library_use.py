"""The engine without a pipeline, as its README shows it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from wrinklefree.errors import UserError
from wrinklefree.mixture.token_rows import TokenRows
from wrinklefree.train.loop import Trainer
from wrinklefree.train.settings import TrainingSettings
from wrinklefree.train.transformers_trainer import (
    TrainingRows,
    WrinkleFreeTrainer,
    training_arguments,
)

FAMILIES = re.compile(
    r"bamba|bert|deepseek|falcon|gemma|gpt2|granite|jamba|llama(?![._]cpp)|mamba|mistral|mixtral|olmo"
    r"|qwen|smollm",
    re.IGNORECASE,
)
README = Path(__file__).parents[2] / "src/wrinklefree/train/README.md"


SHAPE: dict[str, Any] = {
    "vocab_size": 30, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "attn_implementation": "sdpa",
}  # fmt: skip


def small_model() -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def counting_rows() -> torch.Tensor:
    """Rows that count upwards modulo 30, from anywhere."""
    return (torch.arange(30)[:, None] + torch.arange(12)) % 30


def settings(**changes: Any) -> TrainingSettings:
    values = {
        "steps": 30,
        "batch_size": 6,
        "optimizer": {"name": "adamw", "adamw": {"lr": 0.001}},
        "schedule": {"warmup_steps": 2},
    }
    return TrainingSettings.model_validate({**values, **changes})


def test_the_readme_runs_and_the_model_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    small_model().save_pretrained("my/llama")
    torch.save(counting_rows(), "tokens.pt")
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["facts"]["steps"] == 100
    assert names["facts"]["loss_last"] < 0.7 * names["facts"]["loss_first"]
    assert "100 of 100 steps" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my", "tokens.pt"]
    assert AutoModelForCausalLM.from_pretrained("my/llama").config.vocab_size == 30


def test_padding_is_no_token_that_was_read():
    lengths = torch.arange(30) % 6 + 7
    rows = TokenRows(counting_rows(), seed=4, length_N=lengths)
    trainer = Trainer(small_model(), rows, settings(steps=4))
    facts = trainer.run()
    read = [trainer.batch(step, 0).document_ids_BT >= 0 for step in range(4)]
    assert facts["tokens"] == sum(int(mask.sum()) for mask in read) < 4 * 6 * 12


def test_with_a_folder_a_killed_training_goes_on(tmp_path: Path):
    def trainer() -> Trainer:
        rows = TokenRows(counting_rows(), seed=4)
        return Trainer(
            small_model(), rows, settings(steps=8, checkpoint_interval=3), folder=tmp_path / "work"
        )

    whole = Trainer(small_model(), TokenRows(counting_rows(), seed=4), settings(steps=8))
    whole.run()
    first = trainer()
    first.optimizer.register_step_pre_hook(lambda *_: stop(first))

    def stop(training: Trainer) -> None:
        if training.state.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = trainer()
    second.run()
    assert second.state.history == whole.state.history
    for one, other in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_held_out_loss_needs_held_out_rows():
    rows = TokenRows(counting_rows(), seed=1)
    with pytest.raises(UserError, match="evaluate_interval is 5, but no held-out rows"):
        Trainer(small_model(), rows, settings(evaluate_interval=5))


@pytest.mark.parametrize(
    ("factor", "told"),
    [
        (1.0, []),
        (1e-4, ["is below 0.001", r"100% of the first 100 steps had .*: little may be left"]),
        (1e4, ["is above 100", r"100% of the first 100 steps had .*: the rate may be too high"]),
    ],
)
def test_gradients_out_of_scale_are_told_once_within_100_steps(
    factor: float, told: list[str], capsys: pytest.CaptureFixture[str]
):
    model = small_model()
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient * factor)
    rows = TokenRows(counting_rows(), seed=4)
    facts = Trainer(model, rows, settings(steps=101, batch_size=1)).run()
    text = capsys.readouterr().err
    assert text.count("warning") == sum(len(re.findall(each, text)) for each in told) == len(told)
    healthy = facts["gradient_health"]["healthy_share"]
    assert healthy == 0.0 if told else healthy > 0.9


def names_and_texts(code: str) -> set[str]:
    """Names and strings of a module, without its docstrings."""
    nodes = list(ast.walk(ast.parse(code)))
    docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
    values = (value for node in nodes if node not in docstrings for value in vars(node).values())
    return {value for value in values if isinstance(value, str)}


def test_the_engine_knows_no_family_of_models_by_name():
    files = sorted(README.parent.rglob("*.py"))
    assert len(files) > 30
    for file in files:
        found = {w for w in names_and_texts(file.read_text()) if FAMILIES.search(w)}
        assert not found, file


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=8.0)),
            "granite model that changes its logits",
        ),
        (
            lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attention_dropout=0.3)),
            "attention_dropout of the llama model is 0.3.*Load the model with attention_dropout=0",
        ),
    ],
)
@pytest.mark.parametrize("inside", [Trainer, "transformers"])
def test_a_model_of_which_a_part_would_not_be_trained_is_refused(
    inside: Any, model: Callable[[], PreTrainedModel], message: str, tmp_path: Path
):
    chosen, rows = settings(), TokenRows(counting_rows(), seed=1)
    with pytest.raises(UserError, match=message):
        if inside is Trainer:
            Trainer(model(), rows, chosen)
        else:
            arguments = training_arguments(chosen, tmp_path, use_cpu=True)
            WrinkleFreeTrainer(model(), arguments, chosen, TrainingRows(rows, chosen))
