from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import config as inductor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from wrinklefree.diffusion.settings import DiffusionSettings
from wrinklefree.errors import UserError
from wrinklefree.mixture.token_rows import TokenRows
from wrinklefree.models.attention import BY_BLOCKS, FLEX
from wrinklefree.models.surgery import insert_bitlinear, insert_subln
from wrinklefree.optim.attention_logits import RECORDING_ATTENTION
from wrinklefree.quant import bitlinear
from wrinklefree.quant.settings import QuantizerSettings
from wrinklefree.train.distill_settings import DistillSettings
from wrinklefree.train.loop import Trainer
from wrinklefree.train.objectives.block_diffusion import BlockDiffusion
from wrinklefree.train.objectives.distillation import distillation
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.objectives.objective import Objective
from wrinklefree.train.wrapping import skip_hidden_pairs, wrap_for_training

# Dynamo does while it traces what torch warns users of; torch hides that from them.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*Function'> should not be inst:DeprecationWarning"),
]

VOCABULARY, LAYERS = 50, 3
RELATIONS = {"heads": 4, "causal": True, "layer_fractions": [0.4]}


def model_of(seed: int, scale: Any = None, head_size: int = 8) -> PreTrainedModel:
    """A small Qwen3, ternary where a scale is given."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, head_dim=head_size,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    if scale:
        insert_subln(model)
        insert_bitlinear(model, QuantizerSettings(scale=scale))
    return model


def settings_of(**changes: Any) -> DistillSettings:
    values: dict[str, Any] = {
        "steps": 6,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "optimizer": {"name": "adamw"},
        "schedule": {"warmup_steps": 2},
        "lambda_warmup": {"warmup_steps": 4},
        "relations": RELATIONS,
        "log_interval": 100,
    }
    return DistillSettings(**values | changes)


def trainer_of(
    settings: DistillSettings, objective: str = "text", scale: str = "absmean", head_size: int = 8
):
    corruption = NextToken()
    if "diffusion" in objective:
        corruption = BlockDiffusion(DiffusionSettings(block_size=4), VOCABULARY - 1, seed=1)
    chosen = Objective(corruption)
    if "distillation" in objective:
        chosen = distillation(corruption, settings, model_of(1, head_size=head_size))
    model = model_of(2, scale, head_size)
    rows = torch.randint(1, VOCABULARY - 1, (64, 20))
    return Trainer(model, TokenRows(rows, seed=1), settings, chosen)


def compiled(trainer: Trainer, **changes: Any) -> CompileCounterWithBackend:
    """Compile it by a back end that counts programs, and changes no number."""
    counter = CompileCounterWithBackend("eager")
    torch._dynamo.reset()
    settings = trainer.settings.model_copy(update={"compile": True, **changes})
    wrap_for_training(trainer.train_step, settings, counter)
    return counter


def parameters(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in trainer.model.parameters()]


TERNARY = {"lambda_warmup": {"warmup_steps": 0}}
CASES = [
    ("text", "absmean", {"telemetry_interval": 1}),
    ("text", "learned", {"optimizer": {"name": "muonclip"}, "precision": "bfloat16"}),
    ("diffusion", "least_squares", {}),
    ("distillation", "learned", {}),
    ("diffusion distillation", "absmean", TERNARY),
]


@pytest.mark.parametrize(("objective", "scale", "changes"), CASES)
def test_activation_checkpointing_changes_no_bit(objective: str, scale: str, changes: Any):
    plain = trainer_of(settings_of(**changes), objective, scale)
    checkpointed = trainer_of(
        settings_of(activation_checkpointing=True, **changes), objective, scale
    )
    for trainer in (plain, checkpointed):
        trainer.run()
    assert plain.state.history == checkpointed.state.history
    assert all(map(torch.equal, parameters(plain), parameters(checkpointed)))


def test_activation_checkpointing_keeps_what_enters_the_layers():
    kept = []
    for chosen in (False, True):
        trainer = trainer_of(settings_of(activation_checkpointing=chosen))
        own = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
        held: dict[int, int] = {}

        def keep(tensor: torch.Tensor, held: dict[int, int] = held) -> torch.Tensor:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            return tensor

        micro = trainer.train_step.objective.corruption.prepare(trainer.batch(0, 0), 0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = trainer.train_step(micro)
        kept.append(sum(size for place, size in held.items() if place not in own))
        del outputs
    entering = LAYERS * 2 * 20 * 32 * 4
    assert kept[1] < kept[0] / 5
    assert kept[1] > entering


@pytest.mark.parametrize(
    ("objective", "scale", "warmup", "checkpointing"),
    [
        ("distillation", "learned", 4, True),
        ("diffusion", "least_squares", 0, False),
    ],
)
def test_a_compiled_training_has_a_program_for_each_kind_of_strength(
    objective: str, scale: str, warmup: int, checkpointing: bool
):
    settings = settings_of(lambda_warmup={"warmup_steps": warmup})
    plain, other = (trainer_of(settings, objective, scale) for _ in range(2))
    counter = compiled(other, activation_checkpointing=checkpointing)
    for trainer in (plain, other):
        trainer.run()
    # Strength 0, between and 1. How many tokens are asked for differs from step to step.
    assert counter.frame_count == (3 if warmup else 1)
    for one, two in zip(plain.state.history, other.state.history, strict=True):
        assert one["train/loss"] == pytest.approx(two["train/loss"], rel=1e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_read_codes_that_are_made_once_for_an_update(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
):
    made, plain_codes = [], bitlinear.ternary_codes

    def counted(*arguments: Any) -> Any:
        made.append(arguments)
        return plain_codes(*arguments)

    monkeypatch.setattr(bitlinear, "ternary_codes", counted)
    settings = settings_of(gradient_accumulation_steps=3, **TERNARY)
    plain, other = (trainer_of(settings) for _ in range(2))
    counter = compiled(other, activation_checkpointing=checkpointing)
    counts = []
    for trainer in (plain, other):
        bitlinear.forget_codes(trainer.model)  # of a look at its logits before the training
        made.clear()
        trainer.run()
        counts.append(len(made))
    weights = len(bitlinear.ternary_layers_by_name(other.model))
    assert counts == [settings.steps * weights] * 2
    assert counter.frame_count == 1
    assert plain.state.history == other.state.history
    assert all(map(torch.equal, parameters(plain), parameters(other)))


def test_what_hooks_look_into_is_not_compiled():
    plain, other = (trainer_of(settings_of(telemetry_interval=2, **TERNARY)) for _ in range(2))
    compiled(other)
    for trainer in (plain, other):
        trainer.run()
    for one, two in zip(plain.state.history, other.state.history, strict=True):
        assert one.keys() == two.keys()
    assert "activation/zeroed" in other.state.history[1]


def test_qk_clip_reads_the_logits_of_compiled_layers():
    settings = settings_of(optimizer={"name": "muonclip"}, **TERNARY)
    plain, other = (trainer_of(settings) for _ in range(2))
    counter = compiled(other)
    for trainer in (plain, other):
        trainer.run()
    assert counter.frame_count
    for one, two in zip(plain.state.history, other.state.history, strict=True):
        assert one["train/qk_max_logit"] == pytest.approx(two["train/qk_max_logit"], rel=0.02)
    with pytest.raises(ValidationError, match="muonclip, which reads attention logits"):
        settings_of(optimizer={"name": "muonclip"}, compile=True, activation_checkpointing=True)


def test_attention_skips_hidden_pairs_unless_it_is_recorded_or_drops():
    plain = model_of(1)
    plain.config.head_dim = 16
    dropping = copy.deepcopy(plain)
    dropping.config.attention_dropout = 0.1
    recorded = trainer_of(settings_of(optimizer={"name": "muonclip"})).model
    recorded.config.head_dim = 16
    for model, device, expected in (
        (plain, "cuda", FLEX),
        (dropping, "cuda", "sdpa"),
        (dropping, "cpu", "sdpa"),
        (recorded, "cuda", RECORDING_ATTENTION),
        (recorded, "cpu", RECORDING_ATTENTION),
        (model_of(1), "cuda", "sdpa"),
        (model_of(1), "cpu", BY_BLOCKS),
    ):
        skip_hidden_pairs(model, torch.device(device))
        assert model.config._attn_implementation == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("objective", ["text", "diffusion", "distillation"])
def test_flex_attention_trains_as_sdpa_does(objective: str):
    ends = []
    for attention in (FLEX, "sdpa"):
        trainer = trainer_of(settings_of(), objective, head_size=16)
        assert trainer.model.config._attn_implementation == FLEX
        trainer.model.set_attn_implementation(attention)
        trainer.run()
        ends.append(trainer.state.history)
    for one, two in zip(*ends, strict=True):
        assert one["train/loss"] == pytest.approx(two["train/loss"], rel=1e-3)
        assert one["train/grad_norm_raw"] == pytest.approx(two["train/grad_norm_raw"], rel=1e-2)


def test_a_machine_without_a_compiler_is_told_so():
    # pytest's monkeypatch would delete the setting when it undoes this: it is not in `__dict__`.
    with (
        inductor.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(UserError, match=r"compile is true.* lacks a C\+\+ compiler"),
    ):
        trainer_of(settings_of(compile=True))


@pytest.mark.exhaustive
@pytest.mark.filterwarnings(
    "ignore:`torch.jit:DeprecationWarning"
)  # torch's own, inside of inductor
@pytest.mark.parametrize("checkpointing", [False, True])
def test_inductor_trains_as_the_plain_layers_do(checkpointing: bool):
    plain = trainer_of(settings_of(), "distillation")
    try:
        other = trainer_of(
            settings_of(compile=True, activation_checkpointing=checkpointing), "distillation"
        )
    except UserError as error:
        pytest.skip(str(error))
    for trainer in (plain, other):
        trainer.run()
    for one, two in zip(plain.state.history, other.state.history, strict=True):
        assert one["train/loss"] == pytest.approx(two["train/loss"], rel=1e-3)
