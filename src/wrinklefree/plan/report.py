"""The table of ``wrinklefree plan``."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedConfig

from wrinklefree.config.parameters import Parameters
from wrinklefree.config.resources import model_shape, reconstruction_bytes
from wrinklefree.errors import UserError
from wrinklefree.evaluate.columns import plain
from wrinklefree.models.configuration import planned_config
from wrinklefree.models.layers import has_both_kinds, has_states, head_size
from wrinklefree.models.settings import SublnSettings
from wrinklefree.plan.live import model_on_meta
from wrinklefree.plan.memory import (
    Memory,
    Training,
    memory_of,
    memory_of_reconstruction,
    pruned,
)
from wrinklefree.train.data import samples_per_step
from wrinklefree.train.distill_settings import BASE

DEVICES_GB = (24, 48, 80)
RECONSTRUCTION = "subln"
"""The stage that trains layers one after the other, where its settings say so."""
SPARE = 0.08
"""Of a device: what the driver, libraries and gaps between tensors take."""


def report(settings: Parameters, stage: str | None, devices: int, tflops: float) -> str:
    """The table of all trainings, or of one, within 80 columns.

    Raises
    ------
    UserError : the model's shape is unknown or none that is counted, or ``stage`` is none that
        trains.
    """
    config, scratch = model_config(settings), settings.base.scratch
    if settings.subln.mixture_of_depths:
        raise UserError(
            "plan counts all tokens in all layers, and subln.mixture_of_depths leaves some out; go"
            " without it for an upper bound"
        )
    if has_states(config) or (scratch and scratch.model.state_space):
        raise UserError(
            "the model has layers with a state (base.scratch.model.state_space, or a Bamba), of"
            " which plan knows neither memory nor operations; measure a few steps instead"
        )
    trainings, length = trainings_of(settings), settings.mixture.sequence_length
    stages = [RECONSTRUCTION] * (settings.subln.reconstruct.kind != "none") + list(trainings)
    if stage is not None and stage not in stages:
        raise UserError(f"{stage} is no training of this run; these are: {', '.join(stages)}")
    if not 0 < tflops < 1e6:
        raise UserError(f"--tflops {tflops:g}: expected 10^12 operations a second, such as 200")
    chosen = [stage] if stage else stages
    columns = [
        _column(trainings[name], config, devices, tflops)
        if name in trainings
        else _reconstruction(settings.subln, config, length, tflops)
        for name in chosen
    ]
    table = [["GB on each device", *columns[0]]]
    table += [[name, *column.values()] for name, column in zip(chosen, columns, strict=True)]
    lines = plain(table)
    notes = (
        f"{config.model_type}, {_parameters(config)}; rows of {length:,} tokens;"
        f" devices: {devices}",
        f"Time at {tflops:g}e12 operations a second on each device (--tflops). A device fits if"
        f"\n{SPARE:.0%} of it is left over. docs/plan.md says what is counted and how well.",
    )
    if RECONSTRUCTION in chosen:
        held = reconstruction_bytes(settings) / 1e9
        notes += (
            f"{RECONSTRUCTION}.reconstruct: one layer at a time on one device; main memory"
            f"\nholds {held:,.1f} GB of hidden states beside the model.",
        )
    taught = [one.distillation for name, one in trainings.items() if name in chosen]
    others = {name for one in taught if one for name in one.teachers}
    if uncounted := sorted(others - {BASE}):
        notes += (f"Not counted: the teachers {', '.join(uncounted)}.",)
    return "\n".join([notes[0], "", *lines, "", *notes[1:]])


def model_config(settings: Parameters) -> PreTrainedConfig:
    """The dense model's configuration, from the settings or a local folder's ``config.json``."""
    source, where = settings.base.source, "resources.model"
    if source.kind == "folder":
        path = Path(source.path) / "config.json"
        where = f"base.source.path: {path}"
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"{where} can't be read ({error})") from error
    elif shape := model_shape(settings):
        content = shape.model_dump(exclude_none=True)
    else:
        raise UserError(
            f"base.source.kind is {source.kind} and resources.model is missing: write the sizes of"
            " the model's config.json there, as params/qwen3_4b.yaml does"
        )
    config = planned_config(content, where)
    config.max_position_embeddings = 1 << 20
    return config


def trainings_of(settings: Parameters) -> dict[str, Training]:
    """The stages that train, by name."""
    length, quantizer = settings.mixture.sequence_length, settings.subln.quantizer
    diffusion, students, prune = settings.dlm.diffusion, settings.distill, settings.subln.prune
    subln = settings.subln.has_norms
    found = [
        Training("stage2", settings.stage2, length, quantizer, None, prune, subln),
        Training("dlm", settings.dlm, length, quantizer, diffusion, prune, subln),
        Training("distill.ar", students.ar, length, quantizer, None, prune, subln),
        Training("distill.dlm", students.dlm, length, quantizer, diffusion, prune, subln),
    ]
    if not settings.dlm.enabled:
        found = [training for training in found if training.diffusion is None]
    if scratch := settings.base.scratch:
        found.insert(0, Training("base", scratch.training, length, None, None))
    return {training.name: training for training in found}


def operations_per_token(training: Training, config: PreTrainedConfig) -> float:
    """Floating point operations of a step, per token of its rows.

    Products with weights, 2 per weight and token read, and attention, over all tokens of a row,
    hidden or not; the backward pass is twice the forward pass. A dense layer that is run again
    stops before its last product. Norms, softmax and the optimizer are left out.
    """
    student = training.trained(config)
    head = 2 * config.vocab_size * config.hidden_size
    read, length = training.views * training.read_length / training.length, training.read_length
    later = 2 * config.hidden_size**2 + head
    total = 3 * read * _decoder(student, length)
    total += (3 if training.learns_logits else 1) * training.asked * head
    total += 3 * training.future_heads * training.asked * later
    if training.settings.activation_checkpointing:
        last = student.num_hidden_layers * 2 * student.hidden_size * _features(student)
        total += read * (_decoder(student, length) - (0 if training.quantizer else last))
    if training.teacher_reads:
        total += _decoder(config, training.length)
        total += training.asked * head if training.teacher_makes_logits else 0
    return total


def _decoder(config: PreTrainedConfig, length: int) -> float:
    """Operations of the layers in a forward pass over a row of ``length`` tokens, per token."""
    heads, keys, size = config.num_attention_heads, config.num_key_value_heads, head_size(config)
    routers = getattr(config, "num_experts", None) or 0
    weights = config.hidden_size * (2 * (heads + keys) * size + 3 * _features(config) + routers)
    return config.num_hidden_layers * (2 * weights + 4 * heads * size * length)


def _reconstruction(
    settings: SublnSettings, config: PreTrainedConfig, length: int, tflops: float
) -> dict[str, str]:
    """As many passes of every layer: the dense one's, its error, its steps, its error, its own."""
    chosen, student = settings.reconstruct, pruned(config, settings.prune)
    tokens = chosen.batch_size * length
    speed = tflops * 1e12 / ((4 + 3 * chosen.epochs) * _decoder(student, length))
    memory = memory_of_reconstruction(settings, config, length)
    return _cells("adamw", memory, tokens, speed, chosen.rows * length / speed)


def _features(config: PreTrainedConfig) -> int:
    """Features between the products of a feed-forward network, or of the experts of a token; where
    a model has both kinds of layers, of the larger kind."""
    if not getattr(config, "num_experts", None):
        return config.intermediate_size
    of_experts = config.num_experts_per_tok * config.moe_intermediate_size
    return max(of_experts, config.intermediate_size) if has_both_kinds(config) else of_experts


def _column(
    training: Training, config: PreTrainedConfig, devices: int, tflops: float
) -> dict[str, str]:
    memory = memory_of(training, config, devices)
    tokens = samples_per_step(training.settings) * training.length * devices
    speed = devices * tflops * 1e12 / operations_per_token(training, config)
    seconds = tokens * training.settings.steps / speed
    return _cells(training.settings.optimizer.name, memory, tokens, speed, seconds)


def _cells(
    optimizer: str, memory: Memory, tokens: int, speed: float, seconds: float
) -> dict[str, str]:
    labels = {
        "parameters": memory.parameters,
        "gradients": memory.gradients,
        "optimizer state": memory.optimizer,
        "average": memory.average,
        "teacher": memory.teacher,
        "activations": memory.activations,
        "loss, or a layer's": memory.working,
        "all": memory.total,
    }
    return {
        "optimizer": optimizer,
        **{label: f"{size / 1e9:,.2f}" for label, size in labels.items()},
        "fits, GB": _fits(memory),
        "tokens a step": f"{tokens:,}",
        "tokens/s": f"{speed:,.0f}",
        "hours": f"{seconds / 3600:,.1f}",
    }


def _fits(memory: Memory) -> str:
    fitting = [size for size in DEVICES_GB if memory.total <= size * 1e9 * (1 - SPARE)]
    return str(fitting[0]) if fitting else "none"


def _parameters(config: PreTrainedConfig) -> str:
    model = model_on_meta(config)
    every = sum(parameter.numel() for parameter in model.parameters())
    stacks = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 3)
    if not stacks:
        return f"{every:,} parameters"
    idle = stacks - stacks * config.num_experts_per_tok // config.num_experts
    return f"{every:,} parameters, {every - idle:,} of them for each\ntoken"
