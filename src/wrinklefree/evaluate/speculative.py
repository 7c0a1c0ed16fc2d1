"""Greedy decoding that checks what heads for later tokens guess, several tokens in one pass.

The tokens are those of greedy decoding, but for ties that rounding breaks: a guess is kept where it
is what the model itself says (arXiv 2404.19737, section 3.2).

Shapes: B = 1 row, T tokens, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from wrinklefree.models.forward import logits_of
from wrinklefree.models.future_heads import future_heads, future_states


@dataclass
class Speculation:
    """Tokens, and what they took."""

    tokens: list[int] = field(default_factory=list)
    """New ones; the last is the end of the text if the model stopped."""
    forward_passes: int = 0
    guesses: tuple[int, int] = (0, 0)
    """Tokens that heads guessed and a pass checked; those of them that were what the model says,
    one after the other from the first."""


@torch.no_grad()
def decode_speculatively(
    model: PreTrainedModel, prompt: list[int], *, new_tokens: int, end_of_text_id: int
) -> Speculation:
    """As ``decode_greedily``; ``model`` has heads for later tokens."""
    found, guesses, pending, cache = Speculation(), list[int](), prompt, None
    while len(found.tokens) < new_tokens:
        output = model.get_decoder()(
            input_ids=torch.tensor([pending], device=model.device),
            past_key_values=cache,
            use_cache=True,
        )
        cache, hidden_TD = output.past_key_values, output.last_hidden_state[0]
        hidden_TD = hidden_TD[-1 - len(guesses) :]
        own: list[int] = logits_of(model, hidden_TD).argmax(-1).tolist()
        pairs = zip(guesses, own, strict=False)
        right = next((n for n, (guess, said) in enumerate(pairs) if guess != said), len(guesses))
        found.forward_passes += 1
        found.guesses = found.guesses[0] + len(guesses), found.guesses[1] + right
        for token in own[: right + 1]:
            found.tokens.append(token)
            if token == end_of_text_id or len(found.tokens) == new_tokens:
                return found
        if wrong := len(guesses) - right:
            cache.crop(-wrong)
        last_1D = hidden_TD[[right]]
        states = torch.cat([future_states(head, last_1D) for head in future_heads(model)])
        room = new_tokens - len(found.tokens) - 1
        guesses = logits_of(model, states).argmax(-1).tolist()[:room]
        pending = [own[right], *guesses]
    return found
