"""Greedy continuations of a few prompts: what the numbers sound like.

Shapes: B = 1 row, T tokens, V vocabulary.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from wrinklefree.diffusion.decode import decode
from wrinklefree.errors import UserError
from wrinklefree.evaluate.page import sections_page
from wrinklefree.evaluate.scores import LABELS
from wrinklefree.evaluate.settings import EvaluateSettings
from wrinklefree.evaluate.speculative import decode_speculatively
from wrinklefree.models.future_heads import future_heads
from wrinklefree.models.transforms import DiffuseBlocks, ModelFormat
from wrinklefree.tokens.tokenizer import text_ids
from wrinklefree.tracking.terminal import printable

_GUESSES = ("guessed", "accepted")


@dataclass(frozen=True)
class Sample:
    """A prompt and what a model made of it."""

    prompt: str
    text: str
    """The continuation alone, without the end-of-text token."""
    tokens: int
    """New tokens, the end-of-text token included."""
    forward_passes: int
    """One per token from an autoregressive model; fewer where tokens are decoded in parallel, or
    guessed by heads and checked."""
    ended: bool
    """Whether the model ended the text by itself."""
    guessed: int = 0
    """Tokens that heads for later tokens guessed, where the model has any."""
    accepted: int = 0
    """Those that were right."""
    unmasked: tuple[tuple[str, int], ...] = ()
    """From a diffusion model: what each token adds to ``text``, and the pass that committed it,
    counted in its block from 1."""

    def as_json(self) -> dict[str, Any]:
        """An entry of ``samples.<model>`` of ``evaluation.json``."""
        content = asdict(self)
        absent = (() if self.guessed else _GUESSES) + (() if self.unmasked else ("unmasked",))
        return {name: value for name, value in content.items() if name not in absent}


def generate_samples(
    model: PreTrainedModel,
    model_format: ModelFormat,
    tokenizer: Tokenizer,
    end_of_text_id: int,
    settings: EvaluateSettings,
) -> list[Sample]:
    """A greedy continuation of every prompt of the settings.

    Raises
    ------
    UserError : a prompt is empty, or together with its continuation longer than the model allows.
    """
    diffusion = model_format.find(DiffuseBlocks)
    samples, limits = [], {"new_tokens": settings.new_tokens, "end_of_text_id": end_of_text_id}
    for number, prompt in enumerate(settings.prompts, start=1):
        prompt_ids = text_ids(tokenizer, prompt)
        _check_length(number, len(prompt_ids), settings.new_tokens, model)
        guesses, fixed_in = (0, 0), list[int]()
        if diffusion:
            decoded = decode(
                model,
                prompt_ids,
                block_size=diffusion.block_size,
                token_shift=diffusion.token_shift,
                mask_token_id=diffusion.mask_token_id,
                **limits,
            )
            new_ids, passes = decoded.tokens, decoded.forward_passes
            fixed_in = decoded.fixed_in
        elif future_heads(model):
            found = decode_speculatively(model, prompt_ids, **limits)
            new_ids, passes, guesses = found.tokens, found.forward_passes, found.guesses
        else:
            new_ids = decode_greedily(model, prompt_ids, **limits)
            passes = len(new_ids)
        ended = new_ids[-1:] == [end_of_text_id]
        shown_ids = new_ids[:-1] if ended else new_ids
        text = tokenizer.decode(shown_ids, skip_special_tokens=False)
        pieces = _pieces(tokenizer, shown_ids, text) if diffusion else []
        unmasked = tuple(zip(pieces, fixed_in, strict=False))  # which has the end of text, too
        samples.append(Sample(prompt, text, len(new_ids), passes, ended, *guesses, unmasked))
    return samples


def _pieces(tokenizer: Tokenizer, ids: list[int], text: str) -> list[str]:
    """What each token adds to ``text``; of a character in several tokens the first has it all."""
    beginnings = [tokenizer.decode(ids[:n], skip_special_tokens=False) for n in range(len(ids) + 1)]
    ends = [*accumulate(map(len, beginnings[:-1]), max), len(text)]
    return [text[start:end] for start, end in pairwise(ends)]


@torch.no_grad()
def decode_greedily(
    model: PreTrainedModel, prompt: list[int], *, new_tokens: int, end_of_text_id: int
) -> list[int]:
    """The most likely next token, again and again, over the model's own key-value cache.

    Returns at most ``new_tokens`` tokens; the last is ``end_of_text_id`` if the model stopped.
    """
    new: list[int] = []
    pending = torch.tensor([prompt], device=model.device)
    cache, read = None, 0
    while len(new) < new_tokens and new[-1:] != [end_of_text_id]:
        # Left to themselves some models, Bamba for one, begin at position 0 in every pass.
        positions = torch.arange(read, read := read + pending.shape[1], device=model.device)
        output = model(
            input_ids=pending, position_ids=positions[None], past_key_values=cache, use_cache=True
        )
        cache = output.past_key_values
        pending = output.logits[:, -1:].argmax(-1)
        new.append(int(pending))
    return new


def samples_markdown(samples: dict[str, list[Sample]], new_tokens: int) -> str:
    """All continuations, prompt by prompt, the models below each other."""
    lines = ["# Samples", "", f"Greedy continuations by at most {new_tokens} tokens."]
    prompts = next(iter(samples.values()))
    for number, first in enumerate(prompts):
        lines += ["", f"## Prompt {number + 1}", "", *_indented(first.prompt)]
        for name, continuations in samples.items():
            sample = continuations[number]
            label = f"**{LABELS.get(name, name)}** ({_passes(sample)})"
            lines += ["", label, "", *_indented(sample.text)]
            if sample.unmasked:
                passes = " ".join(str(number) for _, number in sample.unmasked)
                lines += ["", f"Passes of its block after which each token stood: {passes}"]
    return "\n".join(lines) + "\n"


def samples_page(samples: dict[str, list[Sample]]) -> str:
    """The same as a page, the models beside each other."""
    sections = [
        (
            printable(first.prompt),
            [
                (
                    f"{LABELS.get(name, name)} ({_passes(continuations[number])})",
                    _shown(continuations[number]) or "(blank)",
                )
                for name, continuations in samples.items()
            ],
        )
        for number, first in enumerate(next(iter(samples.values())))
    ]
    return sections_page("Samples", sections)


def _shown(sample: Sample) -> str | list[tuple[str, int]]:
    """The text, or its tokens with their passes; neither with blank ends."""
    if not sample.unmasked:
        return _without_blank_ends(printable(sample.text))
    pieces = [(printable(piece), number) for piece, number in sample.unmasked]
    full = [place for place, (piece, _) in enumerate(pieces) if piece.strip()]
    return pieces[full[0] : full[-1] + 1] if full else ""


def _without_blank_ends(text: str) -> str:
    """``text`` from its first line that is not blank, with the indent of that, to its last."""
    return re.sub(r"\A(?:[^\S\n]*\n)+", "", text.rstrip())


def _passes(sample: Sample) -> str:
    end = "ended by itself" if sample.ended else "cut"
    passes = f"{sample.tokens} tokens in {sample.forward_passes} forward passes, {end}"
    if sample.guessed:
        passes += f", {sample.accepted} of {sample.guessed} guesses right"
    return passes


def _check_length(number: int, prompt_length: int, new_tokens: int, model: PreTrainedModel) -> None:
    if not prompt_length:
        raise UserError(f"evaluate.prompts: prompt {number} is empty; give it at least one word")
    limit = model.config.max_position_embeddings
    if prompt_length + new_tokens > limit:
        raise UserError(
            f"evaluate.prompts: prompt {number} has {prompt_length} tokens and evaluate.new_tokens"
            f" is {new_tokens}, but the model ends at {limit} positions; shorten one of them"
        )


def _indented(text: str) -> list[str]:
    """An indented code block, which shows any text as it is, but for control characters."""
    return [f"    {line}".rstrip() for line in printable(text).splitlines()] or ["    (nothing)"]
