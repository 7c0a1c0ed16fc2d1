"""An update of a ternary student against the dense model's, and what each saves for its backward
pass: at the default model's shape, and a decoder layer at those of SmolLM2-135M and Qwen3-0.6B; on
a GPU, where there is one, at that of Qwen3-4B too.

``general`` is a ternary layer that multiplies floats and quantizes its weight and input in every
pass, as layers with learned scales do. All are at full strength, an update is two micro-batches and
the cheapest optimizer, and precisions are compared like with like. At the default shape the student
is also timed as `activation_checkpointing` and `compile` make it, and the dense model compiled.

Shapes: B rows, T tokens, D hidden size.
"""

from __future__ import annotations

import argparse
import copy
import types
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import wrinklefree  # noqa: F401  # isort: skip  # first, for it sets what OpenMP's threads do

import torch
import torch.nn.functional as F
from _timing import (
    NOT_MEASURED,
    default_settings,
    print_header,
    print_table,
    require_close,
    time_in_turns,
)
from torch import Tensor, nn
from torch.optim import SGD
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen3Config

from wrinklefree.models.dense import build_scratch
from wrinklefree.models.layers import decoder_layers
from wrinklefree.models.surgery import insert_bitlinear, insert_subln
from wrinklefree.quant.bitlinear import BitLinear
from wrinklefree.quant.settings import QuantizerSettings
from wrinklefree.quant.ternary import quantize_activation
from wrinklefree.train.allocator import keep_freed_memory
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.objectives.objective import Objective, TrainStep
from wrinklefree.train.wrapping import wrap_for_training

MICRO_BATCHES = 2
PRECISIONS = {"fp32": False, "bfloat16": True}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYER_TOKENS = {"cpu": 512, "cuda": 8192}[DEVICE]
FLOOR = 5 / 6
"""Of a dense layer's products: a third of them, those of the forward pass, at twice the rate."""
WRAPPINGS = ("activation_checkpointing", "compile")
DENSE_COMPILED = "dense, compile"
COMMON: dict[str, Any] = {"num_hidden_layers": 1, "vocab_size": 8, "max_position_embeddings": 4096}
SHAPES = {
    "SmolLM2-135M": LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3,
        **COMMON,
    ),
    "Qwen3-0.6B": Qwen3Config(
        hidden_size=1024, intermediate_size=3072, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128, **COMMON,
    ),
}  # fmt: skip
if DEVICE == "cuda":
    SHAPES["Qwen3-4B"] = Qwen3Config(
        hidden_size=2560, intermediate_size=9728, num_attention_heads=32, num_key_value_heads=8,
        head_dim=128, **COMMON,
    )  # fmt: skip

Run = Callable[[PreTrainedModel], Tensor]
"""A forward pass of one micro-batch, to a scalar."""


class Case(NamedTuple):
    """Models of one shape by variant, and what is run on them."""

    models: dict[str, PreTrainedModel]
    run: Run
    tokens: int


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return quantize_activation(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def _general(layer: BitLinear, activation_MN: Tensor) -> Tensor:
    seen: Any = _Rounded.apply(activation_MN)
    return F.linear(seen, layer._seen_weight(), layer.bias)


def variants(dense: PreTrainedModel, quantizer: QuantizerSettings) -> dict[str, PreTrainedModel]:
    """The dense model, its ternary student, and that student with products of floats."""
    ternary = copy.deepcopy(dense)
    insert_bitlinear(ternary, quantizer)
    insert_subln(ternary)
    general = copy.deepcopy(ternary)
    for module in general.modules():
        if isinstance(module, BitLinear):
            module.forward = types.MethodType(_general, module)
    return {"dense": dense, "ternary": ternary, "general": general}


def default_case() -> Case:
    settings, scratch = default_settings()
    length = settings.mixture.sequence_length
    dense = build_scratch(scratch.model, 4096, length, 0, settings.seed)
    nn.Module.to(dense, DEVICE)
    tokens_BT = torch.randint(0, 4096, (settings.stage2.batch_size, length), device=DEVICE)

    def run(model: PreTrainedModel) -> Tensor:
        logits = model(input_ids=tokens_BT, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens_BT.flatten())

    return Case(variants(dense, settings.subln.quantizer), run, tokens_BT.numel())


def wrapped_case(case: Case) -> Case:
    """The student of ``case`` as it is, and as each setting that wraps its layers makes it; the
    dense model compiled, too."""
    models = {"ternary": case.models["ternary"]}
    for name, setting, of in [
        *((setting, setting, "ternary") for setting in WRAPPINGS),
        (DENSE_COMPILED, "compile", "dense"),
    ]:
        models[name] = copy.deepcopy(case.models[of]).train()
        settings = default_settings()[0].stage2.model_copy(update={setting: True})
        wrap_for_training(TrainStep(models[name], Objective(NextToken())), settings)
    return case._replace(models=models)


def layer_case(config: Any) -> Case:
    dense = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    nn.Module.to(dense, DEVICE)
    half = LAYER_TOKENS // 2
    hidden_BTD = torch.randn(2, half, config.hidden_size, device=DEVICE, requires_grad=True)
    positions_BT = torch.arange(half, device=DEVICE).expand(2, -1)
    gradient_BTD = torch.randn_like(hidden_BTD)

    def run(model: PreTrainedModel) -> Tensor:
        rotary: Any = model.get_decoder().get_submodule("rotary_emb")
        embeddings = rotary(hidden_BTD, positions_BT)
        output = decoder_layers(model)[0](hidden_BTD, position_embeddings=embeddings)
        return (output.float() * gradient_BTD).sum()

    return Case(variants(dense, QuantizerSettings(scale="least_squares")), run, LAYER_TOKENS)


def loss_of(case: Case, name: str, autocast: bool) -> Tensor:
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        return case.run(case.models[name])


def update(case: Case, name: str, autocast: bool) -> Callable[[], None]:
    parameters = list(case.models[name].parameters())
    optimizer = SGD(parameters, lr=1e-9, foreach=True)

    def call() -> None:
        optimizer.zero_grad()
        for _ in range(MICRO_BATCHES):
            loss_of(case, name, autocast).backward()
        optimizer.step()

    return call


def check(case: Case) -> None:
    """Integers and floats give the same loss and gradients, but for rounding."""
    for precision, autocast in PRECISIONS.items():
        found: list[list[Tensor]] = []
        for name in ("ternary", "general"):
            model = case.models[name]
            loss = loss_of(case, name, autocast)
            loss.backward()
            weights = [layer.weight for layer in model.modules() if isinstance(layer, BitLinear)]
            found.append([loss.detach(), *(w.grad for w in weights if w.grad is not None)])
            model.zero_grad()
        # One code that a rounding turned is a percent of a token's error: more in deep models.
        for actual, expected in zip(*found, strict=True):
            require_close(actual, expected, 0.15 if autocast else 0.05, f"ternary in {precision}")


def saved(case: Case, name: str, autocast: bool) -> Counter[str]:
    """Bytes of distinct storages that one pass saves, parameters apart, by module and dtype. Codes
    of weights count once, though they outlive the pass."""
    model, inside = case.models[name], ["elsewhere"]
    seen = {p.untyped_storage().data_ptr(): p.untyped_storage() for p in model.parameters()}
    found: Counter[str] = Counter()
    loss_of(case, name, autocast)  # after which the codes of weights are there
    for layer in model.modules():
        if isinstance(layer, BitLinear) and layer._codes._held:
            for codes in layer._codes._held.codes:
                seen[codes.untyped_storage().data_ptr()] = codes.untyped_storage()
                found["(codes of weights, kept)"] += codes.untyped_storage().nbytes()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen[storage.data_ptr()] = storage  # held, so that no address is given out twice
            found[f"{inside[-1]} {str(tensor.dtype).removeprefix('torch.')}"] += storage.nbytes()
        return tensor

    handles = []
    for path, module in model.named_modules():
        kind = path.rpartition("layers.")[2].partition(".")[2] or "model"

        def enter(_: nn.Module, __: Any, kind: str = kind) -> None:
            inside.append(kind)

        def leave(*_: Any) -> None:
            inside.pop()

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of(case, name, autocast)
    for handle in handles:
        handle.remove()
    return found


def print_saved(title: str, case: Case) -> None:
    columns = [(name, p) for p in PRECISIONS for name in ("dense", "ternary", "general")]
    counts = [saved(case, name, PRECISIONS[precision]) for name, precision in columns]
    print(f"\n{title}: bytes per token saved for the backward pass, by the module that saves")
    print(f"{'':<36}" + "".join(f"{f'{name} {precision}':>18}" for name, precision in columns))
    for kind in ["all", *sorted(set().union(*counts))]:
        amounts = [count.total() if kind == "all" else count[kind] for count in counts]
        print(f"{kind:<36}" + "".join(f"{amount / case.tokens:18,.0f}" for amount in amounts))


def print_times(title: str, case: Case, repeats: int, baselines: list[str]) -> None:
    for precision, autocast in PRECISIONS.items():
        calls = {name: update(case, name, autocast) for name in case.models}
        seconds = time_in_turns(calls, repeats)
        print_table(f"{title}, {precision}", seconds, baselines, case.tokens * MICRO_BATCHES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="turns that are timed")
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    keep_freed_memory()  # as every training does
    cases = {"default model": default_case()}
    cases |= {f"a layer of {name}": layer_case(config) for name, config in SHAPES.items()}
    print_header(f"An update of {MICRO_BATCHES} micro-batches, ternary and dense")
    for case in cases.values():
        check(case)
    for title, case in cases.items():
        print_saved(title, case)
        print_times(title, case, repeats, ["dense", "general"])
    if DEVICE == "cpu":
        print(f"\na layer of Qwen3-4B: {FLOOR:.2f} of the dense one by operations; {NOT_MEASURED}")
    wrapped = wrapped_case(cases["default model"])
    print_times("default model, its layers wrapped", wrapped, repeats, ["ternary", DENSE_COMPILED])


if __name__ == "__main__":
    main()
