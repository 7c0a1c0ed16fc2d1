from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from wrinklefree.errors import UserError
from wrinklefree.mixture.token_rows import TokenRows
from wrinklefree.models.transforms import ternary
from wrinklefree.quant.bitlinear import BitLinear
from wrinklefree.train.loop import Trainer
from wrinklefree.train.settings import QuantizedTrainingSettings
from wrinklefree.train.transformers_trainer import (
    TrainingRows,
    WrinkleFreeTrainer,
    as_batch,
    training_arguments,
)

OPTIMIZERS = {
    "adamw": {"name": "adamw", "adamw": {"lr": 0.001}},
    "muon": {"name": "muon", "muon": {"lr": 0.004}},
    "muonclip": {"name": "muonclip", "muonclip": {"lr": 0.004}},
    "muon8bit": {"name": "muon8bit", "muon8bit": {"lr": 0.004}},
}


def small_model() -> LlamaForCausalLM:
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=30, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, attn_implementation="sdpa",
        )
    )  # fmt: skip
    ternary().apply(model)
    return model


def rows() -> TokenRows:
    """Rows that count upwards modulo 30, of different lengths."""
    tokens = (torch.arange(30)[:, None] + torch.arange(12)) % 30
    return TokenRows(tokens, seed=4, length_N=torch.arange(30) % 6 + 7)


def settings(**changes: Any) -> QuantizedTrainingSettings:
    values: dict[str, Any] = {
        "steps": 8,
        "batch_size": 3,
        "gradient_accumulation_steps": 2,
        "optimizer": OPTIMIZERS["adamw"],
        "schedule": {"warmup_steps": 2},
        "clipping": {"name": "zclip", "zclip": {"warmup_steps": 3}},
        "lambda_warmup": {"warmup_steps": 4},
        "log_interval": 1,
        "checkpoint_interval": 3,
    }
    return QuantizedTrainingSettings.model_validate({**values, **changes})


def trainer(folder: Path, chosen: QuantizedTrainingSettings, **more: Any) -> WrinkleFreeTrainer:
    arguments = training_arguments(chosen, folder, disable_tqdm=True, use_cpu=True, **more)
    return WrinkleFreeTrainer(small_model(), arguments, chosen, TrainingRows(rows(), chosen))


def logged(training: WrinkleFreeTrainer, name: str) -> list[float]:
    return [entry[name] for entry in training.state.log_history if name in entry]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_curves_are_those_of_our_own_loop(name: str, tmp_path: Path):
    chosen = settings(optimizer=OPTIMIZERS[name])
    ours = Trainer(small_model(), rows(), chosen)
    ours.run()
    theirs = trainer(tmp_path, chosen)
    theirs.train()
    history = ours.state.history
    for mine, other in {
        "train/loss": "loss",
        "train/grad_norm_raw": "grad_norm",
        "train/grad_norm_clipped": "grad_norm_clipped",
    }.items():
        expected = [entry[mine] for entry in history]
        assert logged(theirs, other) == pytest.approx(expected, rel=1e-4), mine
    rates = [entry["train/learning_rate"] for entry in history]
    assert logged(theirs, "learning_rate") == pytest.approx(rates, rel=1e-6)
    for (key, mine), other in zip(
        ours.model.state_dict().items(), theirs.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(other, mine, rtol=1e-3, atol=1e-5, msg=key)


def test_a_resumed_training_ends_as_a_whole_one(tmp_path: Path):
    chosen = settings(optimizer=OPTIMIZERS["muon"])
    whole = trainer(tmp_path / "whole", chosen)
    whole.train()
    for folder in (tmp_path / "whole").glob("checkpoint-[68]"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    resumed = trainer(tmp_path / "whole", chosen)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert resumed.state.global_step == 8
    assert resumed.clipper.state_dict() == whole.clipper.state_dict()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_the_strength_rises_with_the_steps(tmp_path: Path):
    chosen = settings(lambda_warmup={"warmup_steps": 4, "schedule": "linear"})
    training = trainer(tmp_path, chosen)
    layer = next(module for module in training.model.modules() if isinstance(module, BitLinear))
    seen = []
    layer.register_forward_pre_hook(lambda *_: seen.append(layer.quantization_lambda))
    training.train()
    assert seen[::2] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]


def ids(*lengths: int) -> tuple[Tensor, Tensor]:
    mask = (torch.arange(9) < torch.tensor(lengths)[:, None]).long()
    return torch.randint(1, 30, (len(lengths), 9)), mask


def test_rows_of_transformers_lose_what_transformers_says(tmp_path: Path):
    tokens, mask = ids(9, 5, 7)
    labels = tokens.masked_fill(mask == 0, -100)
    labels[2, :4] = -100  # a prompt
    examples = [
        {"input_ids": tokens[n], "attention_mask": mask[n], "labels": labels[n]} for n in range(3)
    ]
    chosen = settings(gradient_accumulation_steps=1, lambda_warmup={"warmup_steps": 0})
    arguments = training_arguments(chosen, tmp_path, disable_tqdm=True, use_cpu=True)
    model = small_model()
    training = WrinkleFreeTrainer(model, arguments, chosen, examples)
    with torch.no_grad():
        batch = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
        found = training.compute_loss(model, batch).item()
        expected = copy.deepcopy(model)(**batch).loss.item()
    assert found == pytest.approx(expected, rel=1e-5)
    assert training.evaluate(examples)["eval_loss"] == pytest.approx(expected, rel=1e-5)
    training.train()
    assert logged(training, "loss")[-1] < logged(training, "loss")[0]


def test_padding_on_the_left_is_no_text():
    tokens, mask = ids(9, 5)
    left = as_batch({"input_ids": tokens.flip(1), "attention_mask": mask.flip(1)})
    assert left.positions_BT[1].tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 4]
    assert left.supervised_BT.sum(1).tolist() == [8, 4]


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        ({"max_steps": 9}, {}, "max_steps is 9, but the settings say 8"),
        ({"per_device_train_batch_size": 8}, {}, "train_batch_size is 8, but the settings say 3"),
        ({"max_grad_norm": 0.0}, {}, "max_grad_norm must be above 0"),
        ({}, {"averaging": {"name": "ema"}}, "averaging has no effect inside"),
        ({}, {"compile": True}, "compile has no effect inside"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    tmp_path: Path, arguments: dict[str, Any], changes: dict[str, Any], message: str
):
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, settings(**changes), **arguments)


def test_a_gradient_that_is_not_finite_stops_the_training(tmp_path: Path):
    training = trainer(tmp_path, settings())
    with torch.no_grad():
        training.model.get_input_embeddings().weight[3] = float("inf")
    with pytest.raises(UserError, match="step 1: the gradient is not finite"):
        training.train()


@pytest.mark.end_to_end
def test_the_example_learns_and_goes_on(tmp_path: Path):
    script = Path(__file__).parents[2] / "examples" / "transformers_trainer.py"
    command = [sys.executable, str(script), "--output", "out", "--steps", "30"]
    said = []
    for more in ([], ["--resume"]):
        result = subprocess.run(
            [*command, *more], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        said.append([float(loss) for loss in re.findall(r"'loss': '?([\d.]+)", result.stdout)])
        shutil.rmtree(tmp_path / "out" / "checkpoint-30")
    assert len(said[0]) == 3 and said[0][0] - said[0][-1] > 0.8
    assert said[1] == said[0][-1:], "from step 20 on"
