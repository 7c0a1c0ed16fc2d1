"""An update of the default ternary student that leaves tokens out in every second layer, against
the whole one: operations and time."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _timing import default_settings, print_header, print_table, require_close, time_in_turns
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import SGD
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.dense import build_scratch
from wrinklefree.models.depths import mix_depths, skipping_layers
from wrinklefree.models.forward import next_token_logits
from wrinklefree.models.layers import decoder_layers
from wrinklefree.models.transforms import ternary

CAPACITIES = (1.0, 0.5, 0.25, 0.125)
WHOLE = "whole"


def build(capacity: float | None, quantized: bool) -> PreTrainedModel:
    settings, scratch = default_settings()
    length = settings.mixture.sequence_length
    model = build_scratch(scratch.model, 4096, length, 0, settings.seed)
    if capacity:
        mix_depths(model, 2, capacity)
    if quantized:
        ternary(settings.subln.quantizer).apply(model)
    return model.train()


def loss_of(model: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    rows, length = tokens_BT.shape
    mask = causal_document_mask(torch.zeros_like(tokens_BT))
    logits = next_token_logits(model, tokens_BT, torch.arange(length).expand(rows, -1), mask)
    return F.cross_entropy(logits.flatten(0, 1), tokens_BT.flatten())


def operations(model: PreTrainedModel, tokens_BT: Tensor) -> int:
    """Of both passes: products, and attention over all pairs, hidden or not."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss_of(model, tokens_BT).backward()
    return counter.get_total_flops()


def update(model: PreTrainedModel, tokens_BT: Tensor) -> Callable[[], None]:
    optimizer = SGD(model.parameters(), lr=1e-9, foreach=True)

    def call() -> None:
        optimizer.zero_grad()
        loss_of(model, tokens_BT).backward()
        optimizer.step()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="turns that are timed")
    repeats = parser.parse_args().repeats
    settings, _ = default_settings()
    print_header("Mixture of depths")
    size = (settings.stage2.batch_size, settings.mixture.sequence_length)
    tokens_BT = torch.randint(0, 4096, size)
    everything = build(1.0, quantized=True)
    for index in skipping_layers(everything):
        choice = decoder_layers(everything)[index].get_submodule("choice")
        torch.nn.init.zeros_(choice.get_parameter("router"))
    whole = build(None, quantized=True)
    loss, expected = (loss_of(model, tokens_BT).detach() for model in (everything, whole))
    require_close(loss, expected, 1e-4, "capacity 1 with weights of 1 as the whole model")
    students = {f"capacity {one:g}": one for one in CAPACITIES}
    dense = operations(build(None, quantized=False), tokens_BT)
    print("\noperations of both passes over those of the whole model")
    for name, capacity in students.items():
        print(f"{name:<26}{operations(build(capacity, False), tokens_BT) / dense:9.3f}")
    calls = {WHOLE: update(whole, tokens_BT)}
    calls |= {n: update(build(one, True), tokens_BT) for n, one in students.items()}
    print_table("An update of the ternary student", time_in_turns(calls, repeats), [WHOLE])


if __name__ == "__main__":
    main()
