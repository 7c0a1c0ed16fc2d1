from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from wrinklefree.config.load import read_settings, validate
from wrinklefree.config.parameters import Parameters
from wrinklefree.config.resources import (
    model_memory_mb,
    model_parameters,
    reconstruction_bytes,
)
from wrinklefree.diffusion.settings import DiffusionSettings
from wrinklefree.downloads.settings import FolderBaseSettings
from wrinklefree.errors import UserError
from wrinklefree.mixture.token_rows import TokenRows
from wrinklefree.models import attention
from wrinklefree.models.calibration import first_layer_input
from wrinklefree.models.forward import hidden_states
from wrinklefree.models.future_heads import attach_future_heads
from wrinklefree.models.layers import decoder_layers
from wrinklefree.models.reconstruct import reconstruct_layers
from wrinklefree.models.settings import (
    MixtureOfDepthsSettings,
    PruneSettings,
    ReconstructSettings,
    SublnSettings,
)
from wrinklefree.models.surgery import insert_bitlinear, insert_subln
from wrinklefree.plan.live import LiveBytes, decoder_phases, model_on_meta
from wrinklefree.plan.memory import Memory, Training, memory_of, memory_of_reconstruction
from wrinklefree.plan.report import (
    SPARE,
    model_config,
    operations_per_token,
    report,
    trainings_of,
)
from wrinklefree.quant.bitlinear import TernaryLayer
from wrinklefree.quant.settings import QuantizerSettings
from wrinklefree.schema.load import overlay
from wrinklefree.train.distill_settings import DistillSettings
from wrinklefree.train.loop import Trainer
from wrinklefree.train.objectives.block_diffusion import BlockDiffusion
from wrinklefree.train.objectives.distillation import distillation
from wrinklefree.train.objectives.future_tokens import with_future_tokens
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.objectives.objective import Objective
from wrinklefree.train.settings import QuantizedTrainingSettings
from wrinklefree.train.stage2_settings import Stage2Settings

PROJECT = Path(__file__).parents[2]
MEASURE = Path(__file__).with_name("measure_peak.py")
QUANTIZER = QuantizerSettings(scale="least_squares", granularity="row")
BROUGHT = {"qwen3_4b": 80, "qwen3_0_6b": 48, "smollm2_360m": 24, "smollm2_135m": 24}
"""Presets with a model from elsewhere, and the GB of the device that they are for."""


def product(inputs: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """Operations, whichever side of the weight the inputs are on."""
    return 2 * inputs[:-1].numel() * weight.numel()


TERNARY_PRODUCTS = {
    torch.ops.wrinklefree.ternary_linear: product,
    torch.ops.aten._int_mm: product,  # without gradients no operation of ours is around it
}

pytestmark = pytest.mark.filterwarnings(
    "ignore::wrinklefree.optim.settings.UnusualLearningRateWarning"
)


def preset(name: str | None) -> Parameters:
    files = [PROJECT / "params" / f"{name}.yaml"] if name else []
    return validate(read_settings(PROJECT / "params.yaml", *files))


def config_of(family: str = "qwen3", **changes: Any) -> Any:
    sizes = {
        "vocab_size": 90, "hidden_size": 48, "intermediate_size": 112, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 512, "tie_word_embeddings": True,
    }  # fmt: skip
    experts = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
    sizes |= experts if family == "qwen3_moe" else {}
    return AutoConfig.for_model(family, **(sizes | changes))


def settings_of(kind: Any = QuantizedTrainingSettings, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "steps": 3,
        "batch_size": 2,
        "optimizer": {"name": "adamw"},
        "schedule": {"warmup_steps": 1},
        "lambda_warmup": {"warmup_steps": 0},
    }
    return kind(**values | changes)


def trainer_of(training: Training, config: Any) -> Trainer:
    """The real training of one small model."""
    model, teacher = (
        AutoModelForCausalLM.from_config(config, attn_implementation="sdpa") for _ in range(2)
    )
    if training.subln:
        insert_subln(model)
    insert_bitlinear(model, QUANTIZER)
    attach_future_heads(model, training.future_heads)
    corruption = NextToken()
    if training.diffusion:
        corruption = BlockDiffusion(training.diffusion, config.vocab_size - 1, seed=1)
    objective = Objective(corruption)
    if training.distillation:
        objective = distillation(corruption, training.distillation, teacher)
    if isinstance(training.settings, Stage2Settings):
        objective = with_future_tokens(objective, training.settings.future_tokens)
    rows = torch.randint(1, config.vocab_size - 1, (8, training.length))
    return Trainer(model, TokenRows(rows, seed=1), training.settings, objective)


def ternary_layers(model: Any) -> list[TernaryLayer]:
    return [module for module in model.modules() if isinstance(module, TernaryLayer)]


@pytest.mark.parametrize("name", ["adamw", "muon8bit", "adamw8bit", "apollo", "normuon"])
def test_the_optimizer_state_is_that_of_a_step(name: str):
    training = Training("t", settings_of(optimizer={"name": name}), 24, QUANTIZER, None)
    trainer = trainer_of(training, config_of())
    trainer._backward(0)
    trainer.optimizer.step()
    states = trainer.optimizer.state.values()
    measured = sum(t.nbytes for state in states for t in state.values() if torch.is_tensor(t))
    planned = memory_of(training, config_of())
    assert planned.optimizer == measured
    assert planned.parameters == sum(p.nbytes for p in trainer.model.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bfloat16"])
@pytest.mark.parametrize(
    ("family", "subln", "queries", "optimizer"),
    [
        ("qwen3", True, 64, "adamw"),
        ("qwen3", True, 16, "adamw"),
        ("qwen3", True, 16, "muonclip"),
        ("qwen3", False, 64, "adamw"),
        ("qwen3_moe", True, 64, "adamw"),
    ],
)
def test_activations_are_what_autograd_keeps(
    family: str,
    subln: bool,
    queries: int,
    optimizer: str,
    checkpointing: bool,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(attention, "QUERIES", queries)
    changes = {"precision": precision, "activation_checkpointing": checkpointing}
    changes |= {"optimizer": {"name": optimizer}}
    training = Training("t", settings_of(**changes), 64, QUANTIZER, None, subln=subln)
    config = config_of(family, num_hidden_layers=5)
    planned = memory_of(training, config).activations
    trainer = trainer_of(training, config)
    own = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
    held: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    micro = trainer.train_step.objective.corruption.prepare(trainer.batch(0, 0), 0)
    question = trainer.train_step.objective.corruption.question(micro)
    saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with saved, trainer.runtime.computing():
        hidden = trainer.model.get_decoder()(
            input_ids=question.tokens_RS,
            position_ids=question.positions_RS,
            attention_mask=question.mask.of(trainer.model),
            use_cache=False,
        )
    measured = sum(size for place, size in held.items() if place not in own)
    del hidden
    # Checkpointed layers share the mask and the rotary embeddings and keep codes of their weights,
    # which no hook sees.
    codes = sum(layer.weight.numel() for layer in ternary_layers(trainer.model))
    slack = codes + 2 * 64 * 64 * 5 + 2 * 2 * 64 * 16 * 4 if checkpointing else 0
    assert measured * 0.97 < planned < measured * 1.06 + slack


@pytest.mark.parametrize("term", ["logits", "relations"])
def test_a_term_that_a_ratio_asks_for_takes_the_memory_of_one_with_a_weight(term: str):
    def working(**changes: Any) -> int:
        weights = {"logits": 0.0, "relations": 0.0} | changes.pop("weights", {})
        relations = {"heads": 4, "causal": True} | changes.pop("relations", {})
        settings = settings_of(DistillSettings, weights=weights, relations=relations, **changes)
        return memory_of(Training("t", settings, 512, QUANTIZER, None), config_of()).working

    asked = working(gradient_ratios={term: 0.1})
    assert working() < asked == working(weights={term: 1.0})
    of_more = working(weights={term: 1.0}, relations={"layer_fractions": [0.0, 0.5, 1.0]})
    assert (of_more > asked) == (term == "relations")


NOTHING = {"logits": 0.0, "relations": 0.0, "hidden": 0.0}
EVERYWHERE = [layer / 16 for layer in range(1, 17)]


@pytest.mark.parametrize(
    ("kind", "changes", "without"),
    [
        (Stage2Settings, {"future_tokens": {"heads": 3}}, {"future_tokens": {"heads": 0}}),
        (
            DistillSettings,
            {"weights": NOTHING | {"hidden": 1.0}, "hidden": {"layer_fractions": EVERYWHERE}},
            {"weights": NOTHING},
        ),
        (
            DistillSettings,
            {
                "weights": NOTHING | {"hidden": 1.0},
                "hidden": {"layer_fractions": EVERYWHERE, "distance": "cosine"},
            },
            {"weights": NOTHING},
        ),
    ],
    ids=["future_tokens", "hidden", "cosine"],
)
def test_a_part_of_the_loss_takes_the_memory_that_a_step_does(
    kind: Any, changes: dict[str, Any], without: dict[str, Any]
):
    heads = "future_tokens" in changes
    config = config_of(vocab_size=2000 if heads else 90, num_hidden_layers=2 if heads else 16)
    measured, planned = [], []
    for given in (without, changes):
        if kind is DistillSettings:
            given = given | {"relations": {"heads": 4, "causal": True}}
        training = Training("t", settings_of(kind, **given), 128, QUANTIZER, None)
        trainer = trainer_of(training, config)
        parameters = list(trainer.model.parameters())
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        there = [*parameters, *(p.grad for p in parameters if p.grad is not None)]
        teachers: Any = trainer.train_step.objective.teachers
        there += [p for _, teacher in teachers for p in teacher.model.parameters()]
        with LiveBytes(there) as live:
            trainer._backward(0)
        measured.append(live.peak)
        planned.append(memory_of(training, config).working)
    more = measured[1] - measured[0]
    assert 0.9 * more < planned[1] - planned[0] < 1.3 * more


@pytest.mark.parametrize(
    "changes",
    [{"decoder_sparse_step": 3}, {"mlp_only_layers": [0, 1], "intermediate_size": 900}],
    ids=["experts", "dense"],
)
def test_where_layers_are_of_two_kinds_the_larger_one_is_planned(changes: dict[str, Any]):
    config = config_of("qwen3_moe", num_hidden_layers=6, **changes)
    training = Training("t", settings_of(), 64, QUANTIZER, None)
    model = model_on_meta(config, QUANTIZER)
    sizes = [4 * sum(p.numel() for p in layer.parameters()) for layer in decoder_layers(model)]
    real = decoder_phases(model, 2, 64, None, hidden_states).kept
    assert real <= memory_of(training, config).activations < 3 * real
    subln = SublnSettings(quantizer=QUANTIZER, reconstruct=ReconstructSettings(kind="layers"))
    assert memory_of_reconstruction(subln, config, 64).parameters == max(sizes)
    trainer = trainer_of(training, config)
    counter = FlopCounterMode(display=False, custom_mapping=TERNARY_PRODUCTS)
    with sdpa_kernel(SDPBackend.MATH), counter:
        trainer._backward(0)
    assert counter.get_total_flops() / (2 * 64) < 1.03 * operations_per_token(training, config)


def test_products_of_heads_for_later_tokens_are_counted():
    settings = settings_of(Stage2Settings, future_tokens={"heads": 2})
    training = Training("t", settings, 64, QUANTIZER, None)
    counter = FlopCounterMode(display=False, custom_mapping=TERNARY_PRODUCTS)
    with sdpa_kernel(SDPBackend.MATH), counter:
        trainer_of(training, config_of())._backward(0)
    planned = operations_per_token(training, config_of())
    assert counter.get_total_flops() / (2 * 64) == pytest.approx(planned, rel=0.03)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("family", "taught", "diffusion"),
    [
        ("qwen3", None, None),
        ("qwen3", {"relations": 0.0}, None),
        ("qwen3", {"cross_entropy": 0.0, "logits": 0.0, "relations": 0.0, "hidden": 1.0}, None),
        ("qwen3", {"relations": 0.0}, DiffusionSettings(block_size=4)),
        ("qwen3_moe", None, None),
    ],
)
def test_operations_are_those_that_a_counter_sees(
    family: str, taught: dict[str, float] | None, diffusion: Any, checkpointing: bool
):
    settings = settings_of(activation_checkpointing=checkpointing)
    if taught:
        settings = settings_of(
            DistillSettings,
            activation_checkpointing=checkpointing,
            weights=taught,
            relations={"heads": 4, "causal": True},
        )
    training = Training("t", settings, 64, QUANTIZER, diffusion)
    trainer = trainer_of(training, config_of(family))

    counter = FlopCounterMode(display=False, custom_mapping=TERNARY_PRODUCTS)
    with sdpa_kernel(SDPBackend.MATH), counter:
        trainer._backward(0)
    planned = operations_per_token(training, config_of(family))
    assert counter.get_total_flops() / (2 * 64) == pytest.approx(planned, rel=0.03)


@pytest.fixture
def reconstructing() -> Parameters:
    """The default run with 6 rows for its layers."""
    settings = preset(None)
    chosen = ReconstructSettings(kind="layers", rows=6, epochs=3, precision="fp32")
    subln = settings.subln.model_copy(update={"reconstruct": chosen})
    return settings.model_copy(update={"subln": subln})


def test_layers_that_are_trained_one_by_one_cost_what_a_counter_sees(
    reconstructing: Parameters, tmp_path: Path
):
    chosen, length = reconstructing.subln.reconstruct, 32
    mixture = reconstructing.mixture.model_copy(update={"sequence_length": length})
    settings = reconstructing.model_copy(update={"mixture": mixture})
    config = model_config(settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    insert_subln(model)
    insert_bitlinear(model, QUANTIZER)
    rows = TokenRows(torch.randint(1, config.vocab_size - 1, (8, length)), seed=1)
    batches = [rows.batch(step, 0, batch_size=2, micro_batches=1) for step in range(3)]
    inputs = [first_layer_input(model, batch) for batch in batches]
    held = sum(
        # Hidden states are there twice: the dense model's and the ternary one's.
        one.hidden_BTD.nbytes * 2
        + sum(part.nbytes for part in tree_leaves(one.arguments) if torch.is_tensor(part))
        for one in inputs
    )
    assert reconstruction_bytes(settings) == pytest.approx(held, rel=0.1)

    counter = FlopCounterMode(display=False, custom_mapping=TERNARY_PRODUCTS)
    with sdpa_kernel(SDPBackend.MATH), counter:
        reconstruct_layers(model, batches, chosen, tmp_path)
    text = report(settings, "subln", 1, 1.0)
    seconds = counter.get_total_flops() / 1e12
    planned = chosen.rows * length / float(text.split("tokens/s")[1].split()[0].replace(",", ""))
    assert planned == pytest.approx(seconds, rel=0.03)
    layer = decoder_layers(model)[0]
    numbers = sum(parameter.numel() for parameter in layer.parameters())
    memory = memory_of_reconstruction(settings.subln, config, length)
    assert memory.parameters == memory.optimizer / 2 == 4 * numbers


def test_a_model_without_subln_is_planned_as_such(reconstructing: Parameters):
    config, memory = model_config(reconstructing), {}
    for gain in ("ones", "none"):
        subln = reconstructing.subln.model_copy(update={"gain": gain})
        trainings = trainings_of(reconstructing.model_copy(update={"subln": subln}))
        ternary = [one for one in trainings.values() if one.quantizer]
        assert len(ternary) == 4 and {one.subln for one in ternary} == {gain == "ones"}
        memory["stage2", gain] = memory_of(trainings["stage2"], config)
        memory["subln", gain] = memory_of_reconstruction(subln, config, 32)
    gains = 4 * (config.hidden_size + config.intermediate_size)
    for name, layers in {"stage2": config.num_hidden_layers, "subln": 1}.items():
        one, other = memory[name, "ones"], memory[name, "none"]
        assert one.parameters - other.parameters == layers * gains
        assert one.activations > other.activations


def test_layers_that_are_trained_one_by_one_have_a_column(reconstructing: Parameters):
    text = report(reconstructing, None, 1, 1.0)
    assert text.splitlines()[2].split()[4] == "subln"
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "hidden states" not in report(reconstructing, "stage2", 1, 1.0)
    assert "subln" not in report(preset(None), None, 1, 1.0)
    assert model_memory_mb(reconstructing) > model_memory_mb(preset(None))


@pytest.mark.parametrize("name", BROUGHT)
def test_a_preset_of_a_brought_model_gives_its_size(name: str):
    settings = preset(name)
    counted = model_on_meta(model_config(settings)).num_parameters()
    assert model_parameters(settings) == pytest.approx(counted, rel=1e-3)
    known = {"qwen3_4b": 4022468096, "smollm2_135m": 134515008, "smollm2_360m": 361821120}
    assert counted == known.get(name, 596049920)


def test_the_preset_of_seeds_002_has_its_size_and_rates():
    settings = preset("moe_1_5b")
    config = model_config(settings)
    counted = model_on_meta(config).num_parameters()
    assert counted == 1_531_900_416
    assert model_parameters(settings) == pytest.approx(counted, rel=1e-3)
    assert settings.base.scratch
    muon = settings.base.scratch.training.optimizer.muon
    assert (muon.scale, muon.lr, muon.adamw_lr) == ("original", 1e-3, 3e-4)
    line = "qwen3_moe, 1,531,900,416 parameters, 474,935,808 of them for each\ntoken; rows of 2,048"
    stacks = 28 * 32 * 3 * 1024 * 512
    assert counted - 474_935_808 == stacks * 24 // 32
    table = report(settings, "stage2", 1, 200.0)
    assert table.startswith(line)
    page = (PROJECT / "docs" / "moe.md").read_text(encoding="utf-8")
    (planned,), (shown,) = (re.findall(r"^all +.*", text, re.MULTILINE) for text in (table, page))
    assert shown.split()[2] == planned.split()[1], "stage 2 is the second of the page's columns"


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "gigabytes"), [*BROUGHT.items(), ("moe_1_5b", 48)])
def test_every_training_of_a_preset_fits_the_device_that_it_is_for(name: str, gigabytes: int):
    settings = preset(name)
    config = model_config(settings)
    for training in trainings_of(settings).values():
        total = memory_of(training, config).total
        assert total < gigabytes * 1e9 * (1 - SPARE), f"{training.name}: {total / 1e9:.1f} GB"


def test_the_table_is_of_80_columns_and_devices_share():
    one = report(preset(None), None, 1, 1.0)
    two = report(preset(None), "stage2", 2, 1.0)
    assert max(len(line) for line in one.splitlines()) <= 80
    assert "distill.dlm" in one.splitlines()[2]

    def row(text: str, label: str) -> list[float]:
        line = next(line for line in text.splitlines() if line.startswith(label))
        return [float(word.replace(",", "")) for word in line.removeprefix(label).split()]

    assert row(two, "tokens/s") == pytest.approx([2 * row(one, "tokens/s")[1]], rel=1e-3)
    assert row(two, "parameters")[0] == pytest.approx(row(one, "parameters")[1] / 2, abs=0.01)
    assert row(one, "teacher")[1] == 0 < row(one, "teacher")[-1]


def test_a_teacher_of_stage_2_is_counted_unless_its_logits_are_written_down():
    stage2, config = preset(None).stage2, config_of()

    def teacher(**changes: Any) -> int:
        given = stage2.model_dump(exclude_none=True) | changes
        training = Training("stage2", Stage2Settings.model_validate(given), 64, QUANTIZER, None)
        return memory_of(training, config).teacher

    assert teacher() == teacher(teacher="base", distillation={"cached_logits": 8}) == 0
    assert teacher(teacher="base") > 0
    assert teacher(teacher="base", distillation={"teachers": {"large": 1.0}}) == 0


def test_a_pruned_student_has_a_whole_teacher_and_an_average_is_a_copy():
    stage2, config = preset(None).stage2, config_of()

    def planned(prune: PruneSettings, **changes: Any) -> tuple[Memory, float]:
        given = stage2.model_dump(exclude_none=True) | changes
        settings = Stage2Settings.model_validate(given)
        training = Training("stage2", settings, 64, QUANTIZER, None, prune)
        return memory_of(training, config), operations_per_token(training, config)

    found = []
    for prune in (PruneSettings(), PruneSettings(layers=1, intermediate_size=48)):
        (alone, operations), (taught, with_teacher) = planned(prune), planned(prune, teacher="base")
        assert alone.average == 0
        averaging = {"name": "ema", "ema": {"decay": 0.9}}
        assert planned(prune, averaging=averaging)[0].average == alone.parameters
        found.append((alone.parameters, taught.teacher, with_teacher - operations))
    (whole, *price), (fewer, *of_pruned) = found
    assert of_pruned == pytest.approx(price) and fewer < 0.7 * whole


def test_teachers_of_unknown_size_are_named():
    ar = preset(None).distill.ar.model_copy(update={"teachers": {"base": 0.5, "large": 0.5}})
    settings = preset(None)
    students = settings.distill.model_copy(update={"ar": ar})
    text = report(settings.model_copy(update={"distill": students}), None, 1, 1.0)
    assert text.endswith("Not counted: the teachers large.")
    assert "Not counted" not in report(settings, None, 1, 1.0)


def test_mistakes_are_told():
    settings = preset("smollm2_135m")
    with pytest.raises(
        UserError, match=r"stage3 is no training of this run; these are: subln, stage2"
    ):
        report(settings, "stage3", 1, 1.0)
    unknown = settings.resources.model_copy(update={"model": None})
    with pytest.raises(UserError, match=r"resources.model is missing: write the sizes"):
        report(settings.model_copy(update={"resources": unknown}), None, 1, 1.0)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", ["wide", "long"])
def test_the_peak_is_what_the_process_takes(case: str):
    command = [sys.executable, str(MEASURE), case]
    # Else the C library keeps what was freed, and the process grows by gaps.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["planned"] == pytest.approx(found["measured"], rel=0.08), found


def test_a_model_with_states_is_not_counted_as_another_one() -> None:
    states = {"attention_layers": [1], "heads": 4}
    hybrid = {"base": {"scratch": {"model": {"state_space": states}}}, "dlm": {"enabled": False}}
    settings = validate(overlay(read_settings(PROJECT / "params.yaml"), hybrid))
    with pytest.raises(UserError, match="of which plan knows neither memory nor operations"):
        report(settings, None, 1, 200)


def test_a_diffusion_model_that_is_left_out_is_not_planned() -> None:
    settings = preset(None)
    alone = settings.model_copy(update={"dlm": settings.dlm.model_copy(update={"enabled": False})})
    assert set(trainings_of(settings)) - set(trainings_of(alone)) == {"dlm", "distill.dlm"}


def test_a_model_that_leaves_tokens_out_is_not_counted_as_a_whole_one() -> None:
    settings = preset(None)
    subln = settings.subln.model_copy(update={"mixture_of_depths": MixtureOfDepthsSettings()})
    with pytest.raises(UserError, match="go without it for an upper bound"):
        report(settings.model_copy(update={"subln": subln}), None, 1, 200)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "config.json: expected a mapping"),
        ({}, "config.json: model_type is missing"),
        ({"model_type": "gpt9"}, "config.json: model_type is 'gpt9'"),
        ({"model_type": "llama", "num_attention_heads": 0}, "num_attention_heads"),
    ],
)
def test_a_wrong_file_of_sizes_is_one_message(content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    settings = preset("smollm2_135m")
    source = FolderBaseSettings(kind="folder", path=str(tmp_path), sha256="0" * 64)
    base = settings.base.model_copy(update={"source": source})
    with pytest.raises(UserError, match=f"(?s)base.source.path: .*{message}"):
        model_config(settings.model_copy(update={"base": base}))


def test_more_layers_than_there_are_can_not_be_left() -> None:
    settings = preset("smollm2_135m")
    prune = settings.subln.prune.model_copy(update={"layers": 31})
    subln = settings.subln.model_copy(update={"prune": prune})
    with pytest.raises(UserError, match="subln.prune.layers is 31, but the base has 30"):
        report(settings.model_copy(update={"subln": subln}), "stage2", 1, 1.0)
