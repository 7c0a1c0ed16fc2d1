"""A step of every optimizer on hidden matrices, against torch.optim.Muon and AdamW; bytes of state.

Shapes: R rows, C columns of a weight.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from _timing import (
    default_settings,
    print_header,
    print_table,
    require,
    require_close,
    time_in_turns,
)
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from wrinklefree.models.dense import build_scratch
from wrinklefree.optim.adamw import hidden_and_others
from wrinklefree.optim.build import build_optimizer
from wrinklefree.optim.muon import scale_factor
from wrinklefree.optim.newton_schulz import ITERATIONS, Coefficients
from wrinklefree.optim.settings import OptimizerSettings

LR, WEIGHT_DECAY = 1e-3, 0.1
COMMON: dict[str, Any] = {"lr": LR, "weight_decay": WEIGHT_DECAY}
TORCH, ADAMW = "torch.optim.Muon", "torch.optim.AdamW"
BFLOAT16, POLAR = "muon bfloat16", "muon polar_express"
OURS: dict[str, tuple[str, dict[str, object]]] = {
    "muon": ("muon", {}),
    # As torch.optim.Muon computes: like is compared with like.
    BFLOAT16: ("muon", {"compute": "bfloat16"}),
    POLAR: ("muon", {"coefficients": "polar_express"}),
    "normuon": ("normuon", {"nesterov": True}),
    "muon8bit linear": ("muon8bit", {}),
    "muon8bit dynamic": ("muon8bit", {"quantization": "dynamic"}),
    "apollo": ("apollo", {}),
    "apollo_mini": ("apollo_mini", {}),
    "adamw": ("adamw", {}),
    "adamw8bit": ("adamw8bit", {}),
}


def hidden_of(model: PreTrainedModel) -> list[nn.Parameter]:
    return [parameter for part in hidden_and_others(model)[0] for parameter in part.parameters]


def with_gradients(model: PreTrainedModel, hidden: list[Tensor]) -> PreTrainedModel:
    """A copy of ``model`` whose hidden matrices alone have gradients, so that they alone step."""
    twin = copy.deepcopy(model)
    for parameter, gradient in zip(hidden_of(twin), hidden, strict=True):
        parameter.grad = gradient.clone()
    return twin


def optimizer_of(name: str, model: PreTrainedModel) -> Optimizer:
    if name == TORCH:
        return torch.optim.Muon(hidden_of(model), adjust_lr_fn="match_rms_adamw", **COMMON)
    if name == ADAMW:
        return torch.optim.AdamW(hidden_of(model), **COMMON)
    kind, block = OURS[name]
    settings = {"name": kind, kind: COMMON | block}
    return build_optimizer(model, OptimizerSettings.model_validate(settings))


def muon_update(gradient_RC: Tensor, coefficients: Coefficients = "classic") -> Tensor:
    """What a first step adds to a weight over -lr, by singular values in float64."""
    u, singular, v = torch.linalg.svd(gradient_RC.double(), full_matrices=False)
    singular = singular / singular.norm() / (1.02 if coefficients == "polar_express" else 1.0)
    for a, b, c in ITERATIONS[coefficients]:
        singular = a * singular + b * singular**3 + c * singular**5
    rows, columns = gradient_RC.shape
    return scale_factor(rows, columns, "match_rms") * (u * singular) @ v


def normuon_update(gradient_RC: Tensor) -> Tensor:
    update_RC = muon_update(gradient_RC)
    rows_RC = update_RC / update_RC.norm(dim=1, keepdim=True)
    return rows_RC * update_RC.norm() / rows_RC.norm()


FIRST_UPDATES: Mapping[str, tuple[Callable[[Tensor], Tensor], float]] = {
    TORCH: (muon_update, 5e-2),
    BFLOAT16: (muon_update, 5e-2),
    "muon": (muon_update, 1e-3),
    POLAR: (lambda gradient: muon_update(gradient, "polar_express"), 1e-3),
    "normuon": (normuon_update, 1e-3),
    "muon8bit linear": (muon_update, 1e-3),
    "muon8bit dynamic": (muon_update, 1e-3),
    ADAMW: (torch.sign, 1e-3),
    "adamw": (torch.sign, 1e-3),
    "adamw8bit": (torch.sign, 1e-3),
}
"""The closed form of the first update, and how near to it a step must be."""


def check(name: str, model: PreTrainedModel, gradients: list[Tensor]) -> None:
    """One step against the closed form; APOLLO's by its length and its channels."""
    twin = with_gradients(model, gradients)
    optimizer_of(name, twin).step()
    for before, after, gradient in zip(hidden_of(model), hidden_of(twin), gradients, strict=True):
        start = before.detach().double()
        update = (start * (1 - LR * WEIGHT_DECAY) - after.detach().double()) / LR
        if name in FIRST_UPDATES:
            expected, tolerance = FIRST_UPDATES[name]
            require_close(update, expected(gradient).double(), tolerance, f"first step of {name}")
        else:
            across = int(gradient.shape[0] > gradient.shape[1])
            cosine = nn.functional.cosine_similarity(update, gradient.double(), dim=across)
            require(bool((cosine > 1 - 1e-4).all()), f"{name} to stretch whole channels")


def print_bytes(model: PreTrainedModel) -> None:
    """Bytes of state for each parameter: of hidden matrices, and of all."""
    print(f"\n{'bytes of state a parameter':<26}{'hidden matrices':>18}{'whole model':>14}")
    for name in OURS:
        twin = copy.deepcopy(model)
        for parameter in twin.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer = optimizer_of(name, twin)
        optimizer.step()
        line = f"{name:<26}"
        for parameters, width in ((hidden_of(twin), 18), (list(twin.parameters()), 14)):
            states = (optimizer.state[parameter].values() for parameter in parameters)
            held = sum(value.nbytes for state in states for value in state)
            line += f"{held / sum(parameter.numel() for parameter in parameters):{width}.3f}"
        print(line)


def smollm2_of_two_layers() -> PreTrainedModel:
    """Two layers of the shape of SmolLM2-135M."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=2,
            num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
        )
    )  # fmt: skip


def main() -> None:
    settings, scratch = default_settings()
    torch.manual_seed(settings.seed)
    length = settings.mixture.sequence_length
    vocabulary = 4096  # about what the default tokenizer has
    print_header("Optimizer step, float32 parameters")
    for title, model in (
        ("default model", build_scratch(scratch.model, vocabulary, length, 0, settings.seed)),
        ("SmolLM2-135M, two layers", smollm2_of_two_layers()),
    ):
        gradients = [torch.randn_like(matrix) for matrix in hidden_of(model)]
        names = [ADAMW, TORCH, *OURS]
        for name in names:
            check(name, model, gradients)
        optimizers = {name: optimizer_of(name, with_gradients(model, gradients)) for name in names}
        calls = {name: optimizer.step for name, optimizer in optimizers.items()}
        shapes = Counter(tuple(gradient.shape) for gradient in gradients)
        matrices = ", ".join(f"{number} of {r}x{c}" for (r, c), number in shapes.items())
        print_table(f"{title}: {matrices}", time_in_turns(calls), [TORCH, ADAMW])
        print_bytes(model)


if __name__ == "__main__":
    main()
