"""Tokens per second of greedy generation over a key-value cache, at the default model's shape.

``general`` multiplies floats and quantizes weights and activations in every pass (see
``train_step.py``); ``ternary`` keeps the codes of its weights. Timed are the pass over the prompt,
and the tokens after it.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial

import torch
from _timing import default_settings, print_header, print_table, require, time_in_turns
from torch import Tensor
from train_step import variants
from transformers import Cache, PreTrainedModel

from wrinklefree.evaluate.generate import decode_greedily
from wrinklefree.models.dense import build_scratch

VOCABULARY, LONGEST, NEW_TOKENS, CHECKED_TOKENS = 4096, 1024, 16, 6
BATCHES = 1, 16
PROMPTS = {"a short prompt": 16, "a long prompt": 768}
NO_TOKEN = -1


@torch.no_grad()
def read(model: PreTrainedModel, prompt_BT: Tensor) -> tuple[Tensor, Cache]:
    """The token after each prompt, [B, 1], and the cache."""
    output = model(input_ids=prompt_BT, use_cache=True, logits_to_keep=1)
    return output.logits.argmax(-1), output.past_key_values


@torch.no_grad()
def go_on(model: PreTrainedModel, pending_B1: Tensor, cache: Cache, tokens: int) -> Tensor:
    """``pending_B1`` and the tokens after it, which join the cache."""
    found = [pending_B1]
    for _ in range(tokens):
        output = model(input_ids=found[-1], past_key_values=cache, use_cache=True)
        found.append(output.logits.argmax(-1))
    return torch.cat(found, 1)


@torch.no_grad()
def without_cache(model: PreTrainedModel, prompt_BT: Tensor, tokens: int) -> Tensor:
    """The same tokens, each from a pass over all that comes before it."""
    seen_BT = prompt_BT
    for _ in range(tokens):
        logits = model(input_ids=seen_BT, use_cache=False).logits[:, -1:]
        seen_BT = torch.cat([seen_BT, logits.argmax(-1)], 1)
    return seen_BT[:, prompt_BT.shape[1] :]


def check(models: dict[str, PreTrainedModel]) -> None:
    """In float64, where no code turns by rounding, neither a cache nor integers change a token."""
    prompt_BT = torch.randint(0, VOCABULARY, (3, 16))
    truths = {}
    for name, model in models.items():
        exact = copy.deepcopy(model).double()
        truth = truths[name] = without_cache(exact, prompt_BT, CHECKED_TOKENS)
        found = go_on(exact, *read(exact, prompt_BT), CHECKED_TOKENS - 1)
        require(torch.equal(found, truth), f"{name}: a cache that changes no token")
        shown = decode_greedily(
            exact, prompt_BT[0].tolist(), new_tokens=CHECKED_TOKENS, end_of_text_id=NO_TOKEN
        )
        require(shown == truth[0].tolist(), f"{name}: the tokens that evaluation shows")
    require(torch.equal(truths["ternary"], truths["general"]), "integers that change no token")


def timed(model: PreTrainedModel, prompt_BT: Tensor) -> Callable[[], None]:
    pending_B1, cache = read(model, prompt_BT)

    def call() -> None:
        go_on(model, pending_B1, cache, NEW_TOKENS)
        cache.crop(-NEW_TOKENS)

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="turns that are timed")
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    settings, scratch = default_settings()
    dense = build_scratch(scratch.model, VOCABULARY, LONGEST, 0, settings.seed).eval()
    models = variants(dense, settings.subln.quantizer)
    print_header("Greedy generation, ternary and dense")
    check(models)
    for title, length in PROMPTS.items():
        for batch in BATCHES:
            prompt_BT = torch.randint(0, VOCABULARY, (batch, length))
            steps = {name: timed(model, prompt_BT) for name, model in models.items()}
            reads = {name: partial(read, model, prompt_BT) for name, model in models.items()}
            for what, calls, tokens in (
                ("the prompt", reads, prompt_BT.numel()),
                (f"{NEW_TOKENS} tokens after it", steps, batch * NEW_TOKENS),
            ):
                seconds = time_in_turns(calls, repeats)
                print_table(f"{title}, {batch} rows: {what}", seconds, ["dense", "general"], tokens)


if __name__ == "__main__":
    main()
