"""Bytes that a training stage holds at its peak, on each device.

The peak is where the loss is computed, or where the last layer's gradients are, whichever holds
more: both while everything lives that was kept for the backward pass.

Shapes: B rows, T tokens of a row, S tokens that the network reads of a row, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedConfig

from wrinklefree.diffusion.settings import DiffusionSettings
from wrinklefree.distill.hidden import hidden_distance
from wrinklefree.distill.relations import relations_divergence
from wrinklefree.distill.settings import HiddenSettings, RelationSettings
from wrinklefree.models.forward import hidden_states, tokens_at_once
from wrinklefree.models.future_heads import attach_future_heads
from wrinklefree.models.layers import decoder_layers, has_both_kinds, head_size
from wrinklefree.models.prune import check_pruned_shape
from wrinklefree.models.settings import PruneSettings, SublnSettings
from wrinklefree.optim.build import build_optimizer
from wrinklefree.plan.live import Phases, decoder_phases, model_on_meta, phases_of
from wrinklefree.quant.settings import QuantizerSettings
from wrinklefree.train.distill_settings import (
    BASE,
    DistillationSettings,
    DistillSettings,
    NextTokenDistillSettings,
)
from wrinklefree.train.objectives.distillation import queries_at_once
from wrinklefree.train.settings import TrainingSettings
from wrinklefree.train.stage2_settings import Stage2Settings
from wrinklefree.train.wrapping import checkpoint_activations, skip_hidden_pairs

_FLOAT, _BFLOAT16 = 4, 2
COPIES_OF_LOGITS = 3
"""Cross-entropy: the logits, their log-softmax, and its gradient."""
COPIES_OF_A_TEACHER = 5
"""KL: the teacher's logits and log-softmax, the student's log-softmax and gradient, a product."""


@dataclass(frozen=True)
class Training:
    """A stage that trains, by what decides over memory and time."""

    name: str
    settings: TrainingSettings
    length: int
    """T"""
    quantizer: QuantizerSettings | None
    """None: the model is dense."""
    diffusion: DiffusionSettings | None
    """None: it asks for next tokens."""
    prune: PruneSettings = field(default_factory=PruneSettings)
    """What remains of the base; the teacher is the whole of it."""
    subln: bool = True
    """Whether a ternary model has the norms of SubLN."""

    def trained(self, base: PreTrainedConfig) -> PreTrainedConfig:
        """The configuration of the model that it trains."""
        return pruned(base, self.prune)

    @property
    def views(self) -> int:
        """In how many masked versions the network reads a row."""
        return 2 if self.diffusion and self.diffusion.complementary_masks else 1

    @property
    def read_length(self) -> int:
        """S: a diffusion student reads noisy and clean tokens."""
        return 2 * self.length if self.diffusion else self.length

    @property
    def asked(self) -> float:
        """Asked tokens per token of a row: complementary masks ask for all, one for a half."""
        return 0.5 if self.diffusion and self.views == 1 else 1.0

    @property
    def teacher_reads(self) -> bool:
        """Whether the base is there while it trains; if it wrote its logits before, it is not."""
        taught = self.distillation
        return taught is not None and BASE in taught.teachers and not taught.cached_logits

    @property
    def learns_logits(self) -> bool:
        """Whether a term of the loss has gradients by way of the head."""
        taught = self.distillation
        return (
            taught is None or bool(taught.weights.cross_entropy) or is_asked_for(taught, "logits")
        )

    @property
    def teacher_makes_logits(self) -> bool:
        """Whether a teacher that reads also has its head make logits."""
        taught = self.distillation
        return self.teacher_reads and taught is not None and is_asked_for(taught, "logits")

    @property
    def future_heads(self) -> int:
        """How many heads for later tokens it trains."""
        settings = self.settings
        has_heads = isinstance(settings, Stage2Settings | NextTokenDistillSettings)
        return settings.future_tokens.heads if has_heads else 0

    @property
    def distillation(self) -> DistillationSettings | None:
        """With a teacher, what it teaches."""
        if isinstance(self.settings, Stage2Settings):
            return self.settings.taught
        return self.settings if isinstance(self.settings, DistillSettings) else None


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    parameters: int
    gradients: int
    optimizer: int
    average: int
    """A copy of the parameters, where the finished model is an average."""
    teacher: int
    activations: int
    """Kept for the backward pass of a micro-batch."""
    working: int
    """Beside all others at the peak."""

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(vars(self).values())


def pruned(base: PreTrainedConfig, prune: PruneSettings) -> PreTrainedConfig:
    """The configuration of what ``prune`` leaves of a model; UserError where it can't be."""
    check_pruned_shape(prune, base)
    changes: dict[str, Any] = {}
    if prune.layers:
        changes |= {"num_hidden_layers": prune.layers, "layer_types": None}
    if prune.intermediate_size:
        changes["intermediate_size"] = prune.intermediate_size
    return type(base).from_dict(base.to_dict() | changes)


def memory_of(training: Training, config: PreTrainedConfig, devices: int = 1) -> Memory:
    """What ``training`` holds on each of some devices, where the base is like ``config``.

    Several share parameters, gradients, optimizer state and the teacher evenly; each has its own
    micro-batch.
    """
    settings = training.settings
    student = training.trained(config)
    model = model_on_meta(student, training.quantizer, subln=training.subln)
    attach_future_heads(model, training.future_heads)
    optimizer = build_optimizer(model, settings.optimizer)
    parameters = _FLOAT * sum(p.numel() for p in model.parameters())
    state = sum(
        tensor.nbytes
        for parameter in model.parameters()
        for tensor in optimizer.state_layout(parameter).values()
    )
    dense = _FLOAT * sum(p.numel() for p in model_on_meta(config).parameters())
    activations, working = _activations(training, student)
    return Memory(
        parameters=parameters // devices,
        gradients=parameters // devices,
        optimizer=state // devices,
        average=0 if settings.averaging.name == "none" else parameters // devices,
        teacher=dense // devices if training.teacher_reads else 0,
        activations=activations,
        working=max(working, _loss(training, student)),
    )


def memory_of_reconstruction(
    settings: SublnSettings, config: PreTrainedConfig, length: int
) -> Memory:
    """What training one decoder layer after the other holds of a device: one layer at a time."""
    student = pruned(config, settings.prune)
    quantizer, subln = settings.quantizer, settings.has_norms
    layers = decoder_layers(model_on_meta(student, quantizer, subln=subln))
    parameters = _FLOAT * max(sum(p.numel() for p in layer.parameters()) for layer in layers)
    chosen = settings.reconstruct
    bfloat16 = chosen.precision != "fp32"
    one, two = _phases(student, quantizer, subln, chosen.batch_size, length, bfloat16)
    return Memory(
        parameters=parameters,
        gradients=parameters,
        optimizer=2 * parameters,
        average=0,
        teacher=0,
        activations=two.kept - one.kept,
        working=one.more,
    )


def _activations(training: Training, config: PreTrainedConfig) -> tuple[int, int]:
    """Kept of all layers, and beside it in the backward pass: one and two layers tell the rest."""
    settings = training.settings
    one, two = _phases(
        config,
        training.quantizer,
        training.subln,
        training.views * settings.batch_size,
        training.read_length,
        settings.precision != "fp32",
        settings,
    )
    more_layers = config.num_hidden_layers - 1
    return one.kept + more_layers * (two.kept - one.kept), two.more


def _phases(
    config: PreTrainedConfig,
    quantizer: QuantizerSettings | None,
    subln: bool,
    rows: int,
    length: int,
    bfloat16: bool,
    wrapped: TrainingSettings | None = None,
) -> list[Phases]:
    """Of the model with one layer, and with two, wrapped as a training with these settings does.

    Where it has layers with experts and without, both are of the kind that holds more.
    """
    if has_both_kinds(config):
        same = config.to_dict() | {"decoder_sparse_step": 1, "mlp_only_layers": []}
        kinds = [type(config).from_dict(same) for _ in range(2)]
        kinds[1].num_experts = 0
        both = [_phases(k, quantizer, subln, rows, length, bfloat16, wrapped) for k in kinds]
        return max(both, key=lambda found: found[1].kept + found[1].more)
    found = []
    for layers in (1, 2):
        small = type(config).from_dict(
            config.to_dict() | {"num_hidden_layers": layers, "layer_types": None}
        )
        model = model_on_meta(small, quantizer, subln=subln)
        # MuonClip looks at all pairs.
        if wrapped and wrapped.optimizer.name != "muonclip":
            skip_hidden_pairs(model, torch.device("cpu"), compiled=wrapped.compile)
        if wrapped and wrapped.activation_checkpointing:
            checkpoint_activations(model)
        autocast = torch.bfloat16 if bfloat16 else None
        found.append(decoder_phases(model, rows, length, autocast, hidden_states))
    return found


def _loss(training: Training, config: PreTrainedConfig) -> int:
    rows, length = training.settings.batch_size, training.length
    copies = COPIES_OF_LOGITS + (training.diffusion is not None)
    distillation, relations = training.distillation, 0
    if distillation and is_asked_for(distillation, "logits"):
        copies += COPIES_OF_A_TEACHER + (training.diffusion is not None)
    if distillation and distillation.relations and is_asked_for(distillation, "relations"):
        relations = _relations(distillation.relations, config, rows, length)
    hidden = 0
    if distillation and is_asked_for(distillation, "hidden"):
        hidden = _hidden(distillation.hidden, config, rows, length)
    tokens = int(training.asked * rows * length)
    block = min(tokens, tokens_at_once(config.vocab_size))
    head = config.vocab_size * config.hidden_size
    # Of the head and what enters it, gradients of all blocks and of one; autocast has the head and
    # a gradient of it once more.
    gradients = 2 * _FLOAT * (head + tokens * config.hidden_size)
    if training.settings.precision != "fp32":
        gradients += 2 * _BFLOAT16 * head
    # Of each head for later tokens the sums wait for the backward pass, and what enters it.
    later = head + config.hidden_size**2 + 2 * tokens * config.hidden_size
    gradients += training.future_heads * _FLOAT * later
    return block * copies * config.vocab_size * _FLOAT + gradients + relations + hidden


def is_asked_for(distillation: DistillationSettings, term: str) -> bool:
    """Whether a term has a weight, or is to get one."""
    weight = getattr(distillation.weights, term)
    return bool(weight or term in distillation.gradient_ratios.targets)


def _hidden(settings: HiddenSettings, config: PreTrainedConfig, rows: int, length: int) -> int:
    shapes = [(rows, length, config.hidden_size)] * len(settings.layer_fractions)

    def compute(*student: torch.Tensor) -> torch.Tensor:
        pairs = [hidden_distance(one.detach(), one, settings.distance) for one in student]
        return torch.stack(pairs).mean(0).sum()

    phases = phases_of(compute, *shapes)
    return phases.kept + phases.more + _FLOAT * sum(map(math.prod, shapes))  # of the teacher


def _relations(settings: RelationSettings, config: PreTrainedConfig, rows: int, length: int) -> int:
    size, heads, causal = head_size(config), settings.heads, settings.causal
    query = (rows, heads, length, config.num_attention_heads * size // heads)
    key = (rows, heads, length, config.num_key_value_heads * size // heads)
    block = min(length, queries_at_once(rows, heads, length))

    def compute(*student: torch.Tensor) -> torch.Tensor:
        return relations_divergence(
            [tensor.detach() for tensor in student],
            student,
            torch.zeros(rows, length, dtype=torch.int64),
            slice(length - block, length),  # the last queries have the most keys
            causal=causal,
            temperature=settings.temperature,
        ).sum()

    phases = phases_of(compute, query, key, key)
    others = (len(settings.layer_fractions) - 1) * sum(map(math.prod, (query, key, key)))
    return phases.kept + phases.more + 2 * _FLOAT * others  # of which vectors and gradients stay
