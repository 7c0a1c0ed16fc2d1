"""What is put around the model for training: objective, attention, checkpointing, compilation.

The one place for it. Parameters, their names and what is saved stay as they are.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.models.attention import FLEX
from wrinklefree.models.attention_by_blocks import attend_by_blocks
from wrinklefree.models.depths import skipping_layers
from wrinklefree.models.experts import layers_with_experts
from wrinklefree.models.forward import require_no_dropout, require_plain_logits
from wrinklefree.models.layers import decoder_layers, has_states, head_size
from wrinklefree.models.state_space import refuse_states
from wrinklefree.quant.bitlinear import codes_at_hand, ternary_layers_by_name
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.objectives.objective import Objective, TrainStep
from wrinklefree.train.objectives.router import with_balanced_routers
from wrinklefree.train.objectives.token_choice import with_token_choices
from wrinklefree.train.runtime import Runtime
from wrinklefree.train.settings import TrainingSettings

LEAST_HEAD_SIZE = 16
"""Features of a head that FlexAttention needs."""
_VARIANTS = 32
"""Compiled versions of a layer: strengths 0, between and 1, times shapes of batches."""


def make_train_step(
    model: PreTrainedModel,
    objective: Objective | None,
    settings: TrainingSettings,
    runtime: Runtime,
) -> TrainStep:
    """What is asked of ``model``, with the terms that it brings itself and teachers on the device.

    Parameters
    ----------
    objective : the next token, where it is None.

    Raises
    ------
    UserError : what is trained here would not be all that the model computes.
    """
    require_no_dropout(model)
    require_plain_logits(model, "model")
    objective = objective or Objective(NextToken())
    for _, teacher in objective.teachers:
        if teacher.model:
            runtime.place(teacher.model)
    objective = with_balanced_routers(objective, model, settings.router_balance_weight)
    return TrainStep(model, with_token_choices(objective, model))


def wrap_for_training(
    train_step: TrainStep,
    settings: TrainingSettings,
    backend: Any = None,
) -> None:
    """Wrap the decoder layers as ``settings`` ask for, in place and once.

    The model must be on its device, and its optimizer built: MuonClip replaces the attention.

    Parameters
    ----------
    backend : of ``torch.compile``; None: inductor.

    Raises
    ------
    UserError : the machine lacks what compilation needs, or the model can't be checkpointed.
    """
    model = train_step.model
    for one in (model, *(teacher.model for _, teacher in train_step.objective.teachers)):
        if one:
            skip_hidden_pairs(one, one.device, compiled=settings.compile)
    if settings.activation_checkpointing:
        checkpoint_activations(model)
    if settings.compile:
        refuse_states(model, "each batch has other documents, no program; set compile to false")
        if backend is None:
            _require_compiler(model.device)
        layers = decoder_layers(model)
        # A layer whose projections are read has an attention of its own in every step.
        looks = train_step.looks.values()
        read = {layer for look in looks for layer in look.projections}
        if any(look.routers for look in looks):
            read |= {layers.index(layer) for layer in layers_with_experts(model)}
        read |= set(skipping_layers(model))
        if not (chosen := set(range(len(layers))) - read):
            raise UserError(
                "compile is true, and every decoder layer has a router or projections that are read"
                " in each step, which a program would pass by; set compile to false"
            )
        for index in chosen:
            _compile(layers[index], backend or "inductor")


def skip_hidden_pairs(
    model: PreTrainedModel, device: torch.device, *, compiled: bool = False
) -> None:
    """Let attention skip blocks of tokens that don't see each other; its mask is no tensor then.

    Changes nothing where attention is recorded (MuonClip) or drops weights at random, where states
    or the choice of tokens read the mask, and on CUDA with heads of fewer features than
    FlexAttention can do, and on a processor where layers are compiled.
    """
    if has_states(model.config) or skipping_layers(model):
        return
    config = model.config
    drops = getattr(config, "attention_dropout", 0.0)
    if config._attn_implementation != "sdpa" or drops:
        return
    if device.type != "cuda":
        if not compiled:
            attend_by_blocks(model)
    elif head_size(config) >= LEAST_HEAD_SIZE:
        model.set_attn_implementation(FLEX)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Let training keep what enters each decoder layer, and nothing of its inside.

    Raises
    ------
    UserError : transformers can't do it with this architecture.
    """
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"activation_checkpointing is true, but {type(model).__name__} of transformers does"
            " not support it; set it to false, with a smaller batch_size"
        )
    # Nothing in a layer is random, so there is no random state to bring back.
    model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})


def _compile(layer: nn.Module, backend: Any) -> None:
    """Compile what is differentiated: held-out rows are few, and of many shapes. What hooks look
    into, such as telemetry, runs as it is: a program would pass them by.

    One layer after the other, because they are alike: the first one's program serves all. Each
    shape has a program of its own, so that which one runs never depends on what ran before, and a
    run that was killed goes on with the same bytes.
    """
    plain = layer.forward
    compiled = torch.compile(  # whose overloads forget recompile_limit
        plain, dynamic=False, backend=backend, recompile_limit=_VARIANTS
    )  # pyright: ignore[reportCallIssue]

    ternary = list(ternary_layers_by_name(layer).values())

    def forward(*args: Any, **kwargs: Any) -> Any:
        watched = any(module._forward_pre_hooks for module in layer.modules())
        if watched or not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        with codes_at_hand(ternary):  # inputs of the program
            return compiled(*args, **kwargs)

    layer.forward = forward


def _require_compiler(device: torch.device) -> None:
    if device.type == "cuda":
        missing = None if find_spec("triton") else "Triton (pip install triton)"
    else:
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
            missing = None
        except InvalidCxxCompiler:
            missing = "a C++ compiler (such as g++, or one that the variable CXX names)"
    if missing:
        raise UserError(
            f"compile is true, but this machine lacks {missing}, which torch.compile needs; install"
            " it, or set compile to false"
        )
