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
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    TrainingArguments,
)

from wrinklefree.diffusion.settings import DiffusionSettings
from wrinklefree.errors import UserError
from wrinklefree.mixture.token_rows import TokenRows
from wrinklefree.models.depths import mix_depths
from wrinklefree.models.future_heads import attach_future_heads
from wrinklefree.models.transforms import ternary
from wrinklefree.quant.bitlinear import BitLinear
from wrinklefree.train.distill_settings import DistillationSettings
from wrinklefree.train.future_tokens_settings import FutureTokensSettings
from wrinklefree.train.loop import Trainer
from wrinklefree.train.objectives.block_diffusion import BlockDiffusion
from wrinklefree.train.objectives.distillation import distillation
from wrinklefree.train.objectives.future_tokens import with_future_tokens
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.objectives.objective import Objective
from wrinklefree.train.settings import QuantizedTrainingSettings
from wrinklefree.train.stage2_settings import Stage2Settings
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


SHAPE: dict[str, Any] = {
    "vocab_size": 30, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "attn_implementation": "sdpa",
}  # fmt: skip


def dense_model() -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def small_model() -> PreTrainedModel:
    model = dense_model()
    ternary().apply(model)
    return model


def with_experts() -> tuple[PreTrainedModel, None]:
    torch.manual_seed(1)
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE, **experts, head_dim=16))
    ternary().apply(model)
    return model, None


def of_mixed_depths() -> tuple[PreTrainedModel, None]:
    model = dense_model()
    mix_depths(model, 1, 0.5)
    ternary().apply(model)
    return model, None


def with_later_tokens() -> tuple[PreTrainedModel, Objective]:
    model = small_model()
    attach_future_heads(model, 2)
    return model, with_future_tokens(Objective(NextToken()), FutureTokensSettings(heads=2))


def with_a_teacher() -> tuple[PreTrainedModel, Objective]:
    weights = {"logits": 0.7, "relations": 0.0}
    taught = DistillationSettings.model_validate({"weights": weights})
    return small_model(), distillation(NextToken(), taught, dense_model())


def of_diffusion() -> tuple[PreTrainedModel, Objective]:
    diffusion = DiffusionSettings(block_size=4, token_shift="noisy")
    return small_model(), Objective(BlockDiffusion(diffusion, mask_token_id=29, seed=1))


MODELS = {
    "experts": with_experts, "depths": of_mixed_depths, "later tokens": with_later_tokens,
    "teacher": with_a_teacher, "diffusion": of_diffusion,
}  # fmt: skip
TERMS = {
    "diffusion": set(),
    "experts": {"train/router_balance", "train/router_balance_weighted", "router/dead_experts"},
    "depths": {"train/token_choice", "train/token_choice_weighted", "choice/agreement"},
    "later tokens": {"train/future_tokens_weighted", "future_tokens/loss_2"},
    "teacher": {"distill/logits", "distill/logits_weighted"},
}


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


def trainer(
    folder: Path,
    chosen: QuantizedTrainingSettings,
    model: PreTrainedModel | None = None,
    objective: Objective | None = None,
    **more: Any,
) -> WrinkleFreeTrainer:
    arguments = training_arguments(chosen, folder, disable_tqdm=True, use_cpu=True, **more)
    data = TrainingRows(rows(), chosen)
    return WrinkleFreeTrainer(model or small_model(), arguments, chosen, data, objective=objective)


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
        "train/loss": "train/loss",
        "train/objective": "loss",
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


@pytest.mark.parametrize("kind", MODELS)
def test_terms_are_those_of_our_own_loop(kind: str, tmp_path: Path):
    chosen = settings(steps=6)
    model, objective = MODELS[kind]()
    ours = Trainer(model, rows(), chosen, objective)
    ours.run()
    theirs = trainer(tmp_path, chosen, *MODELS[kind]())
    theirs.train()
    objectives = [entry["train/objective"] for entry in ours.state.history]
    assert logged(theirs, "loss") == pytest.approx(objectives, rel=1e-4)
    found = theirs.state.log_history[:-1]
    assert len(found) == 6 and TERMS[kind] <= found[0].keys()
    for entry, expected in zip(found, ours.state.history, strict=True):
        for name in filter(expected.__contains__, entry.keys() - {"step"}):
            assert entry[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name


def test_what_is_logged_at_times_is_the_mean_of_the_steps_since(tmp_path: Path):
    seldom, often = (
        trainer(tmp_path / str(interval), settings(log_interval=interval), *with_experts())
        for interval in (4, 1)
    )
    seldom.train()
    often.train()
    for name in ("loss", "train/loss", "train/router_balance"):
        each = logged(often, name)
        assert logged(seldom, name) == pytest.approx([sum(each[:4]) / 4, sum(each[4:]) / 4]), name


RESUMED = [(name, "muon") for name in MODELS] + [("", name) for name in OPTIMIZERS]


@pytest.mark.parametrize(("kind", "optimizer"), RESUMED)
def test_a_resumed_training_ends_as_a_whole_one(kind: str, optimizer: str, tmp_path: Path):
    def begin() -> WrinkleFreeTrainer:
        made = MODELS[kind]() if kind else (small_model(), None)
        return trainer(tmp_path, settings(optimizer=OPTIMIZERS[optimizer]), *made)

    whole = begin()
    whole.train()
    for folder in tmp_path.glob("checkpoint-[68]"):
        shutil.rmtree(folder)
    resumed = begin()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 8
    assert resumed.clipper.state_dict() == whole.clipper.state_dict()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path):
    chosen = settings(steps=5)
    trainer(tmp_path, chosen).train()
    with pytest.raises(UserError, match="the checkpoint is of another model"):
        trainer(tmp_path, chosen, dense_model()).train(resume_from_checkpoint=True)


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
        ({"learning_rate": 0.1}, {}, "learning_rate has no effect here"),
        ({"optim": "sgd"}, {}, "optim has no effect here"),
        ({"bf16": True}, {}, "bf16 is true, but products are computed in fp32"),
        ({"bf16_full_eval": True}, {"precision": "bfloat16"}, "bf16_full_eval has no effect"),
    ],
)
def test_arguments_that_differ_or_have_no_effect_are_refused(
    tmp_path: Path, arguments: dict[str, Any], changes: dict[str, Any], message: str
):
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, settings(**changes), **arguments)


def test_several_gpus_of_one_process_are_refused(tmp_path: Path):
    chosen = settings()
    arguments = training_arguments(chosen, tmp_path, use_cpu=True)
    assert arguments.n_gpu <= 1
    arguments._n_gpu = 2  # as transformers counts them
    with pytest.raises(UserError, match="several processes or GPUs"):
        WrinkleFreeTrainer(small_model(), arguments, chosen, TrainingRows(rows(), chosen))


EFFECTS: dict[str, Any] = {
    "steps": 6,
    "batch_size": 2,
    "gradient_accumulation_steps": 1,
    "optimizer": OPTIMIZERS["muon"],
    "schedule": {"warmup_steps": 1},
    "router_balance_weight": 1.0,
    "clipping": {"name": "zclip", "zclip": {"warmup_steps": 1, "z_threshold": 0.01}},
    "precision": "bfloat16",
    "lambda_warmup": {"warmup_steps": 0},
    "checkpoint_interval": 2,
    "log_interval": 2,
}
REFUSED: dict[str, Any] = {
    "spikes": {"enabled": True},
    "averaging": {"name": "ema"},
    "data": {"order": "length"},
    "activation_checkpointing": True,
    "compile": True,
    "evaluate_interval": 2,
    "evaluate_rows_per_domain": 2,
    "telemetry_interval": 2,
    "max_skipped_steps": 1,
    "teacher": "base",
    "distillation": {"temperature": 2.0, "weights": {"relations": 0.0}},
    "future_tokens": {"heads": 1},
}


def what_is_left(folder: Path, chosen: QuantizedTrainingSettings) -> tuple[Any, ...]:
    training = trainer(folder, chosen, *with_experts())
    training.train()
    curves = (logged(training, "loss"), logged(training, "grad_norm_clipped"))
    return *curves, sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def left_by_default(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    return what_is_left(tmp_path_factory.mktemp("default"), settings(steps=5))


@pytest.mark.parametrize("name", EFFECTS)
def test_settings_have_an_effect(name: str, left_by_default: tuple[Any, ...], tmp_path: Path):
    assert what_is_left(tmp_path, settings(**{"steps": 5, name: EFFECTS[name]})) != left_by_default


@pytest.mark.filterwarnings("ignore::wrinklefree.train.settings.CurriculumDecayWarning")
@pytest.mark.parametrize("name", sorted(Stage2Settings.model_fields.keys() - EFFECTS))
def test_settings_without_an_effect_are_refused(name: str, tmp_path: Path):
    changed = {**settings().model_dump(exclude_none=True), name: REFUSED[name]}
    with pytest.raises(UserError, match=f"^{name} has no effect inside"):
        trainer(tmp_path, Stage2Settings.model_validate(changed))


def test_targets_without_an_effect_are_refused(tmp_path: Path):
    taught = DistillationSettings.model_validate(
        {"weights": {"relations": 0.0}, "gradient_ratios": {"logits": 0.3}}
    )
    objective = distillation(NextToken(), taught, dense_model())
    with pytest.raises(UserError, match=r"gradient_ratios\.logits has no effect inside"):
        trainer(tmp_path, settings(), small_model(), objective)


@pytest.mark.parametrize("arguments", [{}, {"bf16": True}])
def test_products_are_computed_in_the_precision_of_the_settings(
    arguments: dict[str, Any], tmp_path: Path
):
    found = {}
    for precision in ("fp32", "bfloat16"):
        more = arguments if precision == "bfloat16" else {}
        model, seen = small_model(), set()
        chosen = settings(steps=5, precision=precision)
        training = trainer(tmp_path / precision, chosen, model, **more)
        attention = model.get_decoder().layers[0].self_attn
        attention.q_proj.register_forward_hook(
            lambda layer, given, output, seen=seen: seen.add((layer.training, output.dtype))
        )
        training.train()
        training.evaluate(TrainingRows(rows(), chosen))
        found[precision] = seen
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert found == {
        "fp32": {(True, torch.float32), (False, torch.float32)},
        "bfloat16": {(True, torch.bfloat16), (False, torch.bfloat16)},
    }


def test_models_that_our_own_loop_refuses_are_refused(tmp_path: Path):
    chosen = settings(gradient_accumulation_steps=1)
    for change, message in {
        "vocab_size": "has token ids up to 29, but the model's embedding ends at 9",
        "max_position_embeddings": "rows have 12 tokens, but .* is 10",
    }.items():
        model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, change: 10}))
        with pytest.raises(UserError, match=message):
            trainer(tmp_path, chosen, model)
        arguments = training_arguments(chosen, tmp_path, disable_tqdm=True, use_cpu=True)
        examples = [{"input_ids": torch.arange(12) + 18}] * 3
        with pytest.raises(UserError, match=message):
            WrinkleFreeTrainer(model, arguments, chosen, examples).train()
    with pytest.raises(UserError, match="is torch.bfloat16, and training needs float32"):
        trainer(tmp_path, chosen, small_model().bfloat16())


def test_teachers_are_moved_to_the_device_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    meta = property(lambda arguments: arguments._setup_devices and torch.device("meta"))
    monkeypatch.setattr(TrainingArguments, "device", meta)
    model, objective = with_a_teacher()
    training = trainer(tmp_path, settings(), model, objective)
    ((_, teacher),) = training.train_step.objective.teachers
    assert teacher.model is not None and teacher.model.device == model.device
    assert model.device.type == "meta"


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
    for more in (["--own-loop"], [], ["--resume"]):
        result = subprocess.run(
            [*command, *more], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        said.append([float(loss) for loss in re.findall(r"'loss': '?([\d.]+)", result.stdout)])
        shutil.rmtree(tmp_path / "out" / "checkpoint-30", ignore_errors=True)
    own, theirs, resumed = said
    assert len(theirs) == 3 and theirs[0] - theirs[-1] > 0.8
    assert theirs == pytest.approx(own, rel=1e-3)
    assert resumed == theirs[-1:], "from step 20 on"
