"""Runs in a process of its own, in Triton's interpreter on a CPU; prints JSON.

Models go through the kernels as on a GPU, by the one question that every dispatch asks, and are
compared with themselves as they run on a CPU. Of each case: whether they agree, and whether the
kernel that it is about was started as often as it must be.
"""

from __future__ import annotations

import copy
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from wrinklefree.kernels import launch

on_gpu = False
launch.kernels_run_on = lambda device: on_gpu

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRMSNorm  # noqa: E402

from wrinklefree.evaluate.generate import decode_greedily  # noqa: E402
from wrinklefree.kernels import capabilities  # noqa: E402
from wrinklefree.kernels.packed_matmul import triton as packed_matmul  # noqa: E402
from wrinklefree.kernels.quantize_activation import triton as quantize_activation  # noqa: E402
from wrinklefree.kernels.quantize_weights import triton as quantize_weights  # noqa: E402
from wrinklefree.kernels.subln_quantize import triton as subln_quantize  # noqa: E402
from wrinklefree.kernels.ternary_linear import products  # noqa: E402
from wrinklefree.kernels.ternary_matmul import triton as ternary_matmul  # noqa: E402
from wrinklefree.kernels.vocabulary_loss import triton as vocabulary_loss  # noqa: E402
from wrinklefree.mixture.batch import Batch  # noqa: E402
from wrinklefree.models.surgery import (  # noqa: E402
    SublnLinear,
    insert_bitlinear,
    insert_subln,
)
from wrinklefree.quant.bitlinear import BitLinear, quantization_lambda_of  # noqa: E402
from wrinklefree.quant.settings import QuantizerSettings  # noqa: E402
from wrinklefree.stability.activations import ActivationTelemetry  # noqa: E402
from wrinklefree.train.distill_settings import DistillationSettings  # noqa: E402
from wrinklefree.train.objectives.distillation import distillation  # noqa: E402
from wrinklefree.train.objectives.next_token import NextToken  # noqa: E402
from wrinklefree.train.objectives.objective import TrainStep  # noqa: E402

LAYERS, LINEARS = 1, 7
Cases = Iterator[tuple[str, bool]]
calls: Counter[str] = Counter()
read: dict[str, set[torch.dtype]] = {}
"""Of the last call of a kernel: the types of its operands."""


def counted(module: Any, name: str) -> None:
    function = getattr(module, name)

    def call(*arguments: Any) -> Any:
        calls[name] += 1
        read[name] = {one.dtype for one in arguments if isinstance(one, Tensor)}
        return function(*arguments)

    setattr(module, name, call)


for module, name in (
    (packed_matmul, "packed_matmul"),
    (quantize_activation, "quantize_activation"),
    (quantize_weights, "quantize_weights"),
    (subln_quantize, "subln_quantize"),
    (subln_quantize, "subln_gradients"),
    (ternary_matmul, "ternary_matmul"),
    (vocabulary_loss, "cross_entropy"),
    (vocabulary_loss, "divergence"),
):
    counted(module, name)


@contextmanager
def kernels(enabled: bool) -> Iterator[None]:
    global on_gpu
    on_gpu = enabled
    calls.clear()
    try:
        yield
    finally:
        on_gpu = False


def config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=61, hidden_size=36, intermediate_size=52, num_hidden_layers=LAYERS,
        num_attention_heads=3, num_key_value_heads=1, initializer_range=0.3,
    )  # fmt: skip


def model(quantizer: QuantizerSettings) -> LlamaForCausalLM:
    made = LlamaForCausalLM(config())
    insert_bitlinear(made, quantizer)
    return made


def training_cases() -> Cases:
    """Without norms, whose sums have an order, every bit is the same, after updates too."""
    for scale, granularity in (("least_squares", "tensor"), ("absmean", "row")):
        start = model(QuantizerSettings(scale=scale, granularity=granularity))
        tokens = torch.randint(0, 61, (1, 5))
        found: list[list[Tensor]] = []
        launched: list[int] = []
        for enabled in (False, True):
            trained = copy.deepcopy(start)
            optimizer = torch.optim.AdamW(trained.parameters(), lr=0.05)
            losses: list[Tensor] = []
            with kernels(enabled):
                for _ in range(3):
                    loss: Any = trained(input_ids=tokens, labels=tokens, use_cache=False).loss
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    losses.append(loss.detach())
                launched.append(calls["quantize_weights"])
            found.append([*losses, *(p.detach() for p in trained.parameters())])
        yield f"training, {scale} of each {granularity}", all(map(torch.equal, *found))
        # Once after each of the first two updates, whatever the number of layers.
        expected = [0, 2 if granularity == "tensor" else 0]
        yield f"launches, {scale} of each {granularity}", launched == expected


def products_cases() -> Cases:
    """The kernel that multiplies runs where it is named, and changes no bit."""
    made = model(QuantizerSettings(scale="least_squares"))
    tokens = torch.randint(0, 61, (1, 5))
    found: list[list[Tensor]] = []
    for back_end in ("float32", "triton"):
        made.zero_grad()
        os.environ[products.VARIABLE] = back_end
        with kernels(True):
            loss: Any = made(input_ids=tokens, labels=tokens, use_cache=False).loss
            loss.backward()
            wanted = LAYERS * LINEARS if back_end == "triton" else 0
            yield f"launches {back_end}", calls["ternary_matmul"] == wanted
        found.append(
            [loss.detach(), *(p.grad.clone() for p in made.parameters() if p.grad is not None)]
        )
    del os.environ[products.VARIABLE]
    yield "loss and gradients", all(map(torch.equal, *found))


def quantizing_cases() -> Cases:
    """Projections that read their input alone make its codes as they multiply, for few tokens."""
    made = model(QuantizerSettings(scale="least_squares")).eval()
    # By shape: launches of quantize_activation, packed_matmul and ternary_matmul. Queries, keys
    # and values share their codes, gate and up too.
    wanted = {(1, 1): (2, 7, 0), (2, 3): (2, 7, 0), (1, 17): (2, 0, 7), (1, 40): (4, 0, 7)}
    products.MOST_ROUNDED, most = 2**11, products.MOST_ROUNDED  # 32 tokens of 52 inputs
    for shape, launches in wanted.items():
        tokens, logits = torch.randint(0, 61, shape), []
        for enabled in (False, True):
            os.environ[products.VARIABLE] = "triton" if enabled else "float32"
            with kernels(enabled), torch.no_grad():
                logits.append(made(input_ids=tokens).logits)
                names = "quantize_activation", "packed_matmul", "ternary_matmul"
                used = tuple(calls[name] for name in names)
        yield f"logits {shape}", torch.equal(*logits)
        yield f"launches {shape}", used == tuple(LAYERS * number for number in launches)
    with kernels(True):
        made(input_ids=tokens[:1, :17])
        yield "not with gradients", calls["quantize_activation"] == 4 * LAYERS
    del os.environ[products.VARIABLE]
    with kernels(True), torch.no_grad():
        made(input_ids=tokens[:1, :1])
        products.MOST_ROUNDED = most
        yield "not unless named", calls["quantize_activation"] == 4 * LAYERS


def changed_weights_cases() -> Cases:
    """One weight is written to after the codes of all were made; one left the model."""
    layers = nn.ModuleList([BitLinear(36, 36) for _ in range(4)])
    x = torch.randn(3, 36)
    with kernels(True):
        for layer in layers:
            layer(x)
        torch.optim.SGD(layers.parameters(), lr=0.1).step()
        layers[0](x)
        with torch.no_grad():
            layers[1].weight.neg_()
        layers[2].weight = nn.Parameter(torch.randn(36, 36))
        layers[3].weight.data = torch.randn(36, 36)
        held = [layer._weight_codes() for layer in layers]
    for number, (layer, codes) in enumerate(zip(layers, held, strict=True)):
        yield f"changed {number}", all(map(torch.equal, codes, layer.ternary_codes()))


def generation_cases() -> Cases:
    made = model(QuantizerSettings(scale="least_squares", granularity="head")).eval()
    prompt = torch.randint(0, 61, (18,)).tolist()
    tokens: list[list[int]] = []
    with torch.no_grad():
        for enabled in (False, True):
            with kernels(enabled):
                tokens.append(decode_greedily(made, prompt, new_tokens=3, end_of_text_id=-1))
                packed = calls["packed_matmul"]
        yield "tokens", tokens[0] == tokens[1]
        # The prompt has too many tokens, and the two that follow are one pass each.
        yield "launches", packed == 2 * LAYERS * LINEARS
        logits = []
        for enabled in (False, True):
            with kernels(enabled):
                logits.append(made(input_ids=torch.tensor([prompt[:3], prompt[3:6]])).logits)
        yield "logits of two rows", torch.equal(*logits)
        made.get_decoder().get_submodule("layers.0.mlp.up_proj").weight.neg_()
        changed = []
        for enabled in (False, True):
            with kernels(enabled):
                changed.append(made(input_ids=torch.tensor([prompt[:1]])).logits)
        yield "logits of a changed weight", torch.equal(*changed)
    with kernels(True):
        loss = made(input_ids=torch.tensor([prompt[:1]])).logits.sum()
        yield "not with gradients", calls["packed_matmul"] == 0 and loss.requires_grad


def subln_cases() -> Cases:
    """A code may turn where torch's root differs in the last bit from a rounded one."""
    norm = LlamaRMSNorm(63, eps=1e-2)
    nn.init.normal_(norm.weight)
    module = SublnLinear(norm, BitLinear(63, 36))
    start, gradient = 3 * torch.randn(2, 7, 63), torch.randn(2, 7, 36)
    found: list[list[Tensor]] = []
    for enabled in (False, True):
        leaf = start.clone().requires_grad_()
        with kernels(enabled):
            output = module(leaf)
            made = torch.autograd.grad(output, [leaf, *module.parameters()], gradient)
            used = calls["subln_quantize"], calls["subln_gradients"]
        found.append([output.detach(), *made])
        yield f"launches {enabled}", used == (enabled, enabled)
    for name, actual, expected in zip(
        ("output", "gradient of input", "of gain", "of weight"), *reversed(found), strict=True
    ):
        few = 1e-5 if name in ("gradient of input", "of gain") else 1e-2
        yield name, bool((actual - expected).norm() <= few * expected.norm())
    with kernels(True), quantization_lambda_of(module, 0.5):
        module(start)
        yield "not below full strength", calls["subln_quantize"] == 0


def subln_model_cases() -> Cases:
    made = model(QuantizerSettings())
    insert_subln(made)
    tokens, metrics, losses = torch.randint(0, 61, (1, 7)), [], []
    for enabled in (False, True):
        with kernels(enabled):
            losses.append(made(input_ids=tokens, labels=tokens, use_cache=False).loss.item())
            fused = calls["subln_quantize"]
            with ActivationTelemetry(made) as telemetry:
                made(input_ids=tokens, use_cache=False)
            metrics.append(telemetry.metrics())
            yield f"measured values are there {enabled}", calls["subln_quantize"] == fused
    yield "launches", fused == 2 * LAYERS
    yield "loss", abs(losses[0] - losses[1]) <= 1e-2 * losses[0]
    same = [
        abs(metrics[1][name] - value) <= 0.05 * abs(value) for name, value in metrics[0].items()
    ]
    yield "telemetry", len(same) > 0 and all(same)


def distilling_cases() -> Cases:
    """Losses read the head's own logits on a GPU, which are float32 else, with equal results."""
    teacher, start = LlamaForCausalLM(config()), LlamaForCausalLM(config())
    tokens_BT, zeros_BT = torch.randint(0, 61, (2, 9)), torch.zeros(2, 9, dtype=torch.int64)
    places_BT = torch.arange(9).expand(2, -1)
    batch = Batch(
        tokens_BT, zeros_BT, places_BT, zeros_BT, places_BT, zeros_BT[:, 0], zeros_BT[:, 0]
    )
    for direction in ("forward", "reverse", "confidence"):
        weights = {"logits": 1.0, "relations": 0.0}
        settings = DistillationSettings.model_validate({"direction": direction, "weights": weights})
        for autocast in (False, True):
            found: list[list[Tensor]] = []
            for enabled in (False, True):
                student = copy.deepcopy(start)
                with kernels(enabled), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    objective = distillation(NextToken(), settings, teacher)
                    prepared = objective.corruption.prepare(batch, 0)
                    outputs = TrainStep(student, objective)(prepared)
                    whole = objective.corruption.denominator(prepared)
                    loss = objective.loss(outputs, prepared, whole).loss
                loss.backward()
                used = calls["cross_entropy"], calls["divergence"]
                made = [p.grad for p in student.parameters() if p.grad is not None]
                found.append([loss.detach(), *made])
            few = 2**-5 if autocast else 1e-5
            for number, (actual, expected) in enumerate(zip(*found, strict=True)):
                same = (actual - expected).norm() <= few * expected.norm() + 1e-6
                yield f"{direction} {autocast} {number}", bool(same)
            kind = torch.bfloat16 if autocast else torch.float32
            yield f"{direction} {autocast} type", read["divergence"] == {kind}
            confident = direction == "confidence"
            yield f"{direction} {autocast} launches", used == (1 + confident, 1 + confident)


def measuring_cases() -> Cases:
    """What decides where the kernel multiplies: its own time, if its numbers are right."""
    for enabled in (False, True):
        with kernels(enabled):
            found = capabilities.measure("cpu")
        yield f"triton is measured {enabled}", (found["triton"] > 0) == enabled
        yield f"launches {enabled}", (calls["ternary_matmul"] > 0) == enabled


CASES: dict[str, Callable[[], Cases]] = {
    "measuring": measuring_cases,
    "training": training_cases,
    "products": products_cases,
    "quantizing": quantizing_cases,
    "changed_weights": changed_weights_cases,
    "generation": generation_cases,
    "subln": subln_cases,
    "subln_model": subln_model_cases,
    "distilling": distilling_cases,
}

if __name__ == "__main__":
    torch.manual_seed(torch.seed() % 2**31)
    print(json.dumps({name: dict(cases()) for name, cases in CASES.items()}))
