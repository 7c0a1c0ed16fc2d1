"""The untrained model of video tokens, and frames from a trained one.

Shapes: N clips, T tokens of a clip, A tokens that are asked for of it, D features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.diffusion.corruption import cosine_rate
from wrinklefree.models.attention import document_mask
from wrinklefree.models.dense import build_scratch
from wrinklefree.models.factorized import FactorizedEmbedding, FactorizedHead, factorize
from wrinklefree.models.forward import hidden_states, logits_of
from wrinklefree.research.world_model.settings import WorldModelSettings


class PlacedEmbedding(nn.Module):
    """A token's vector and that of its place in the frame; its frame is told by rotation."""

    def __init__(self, tokens: FactorizedEmbedding, places: int, deviation: float) -> None:
        super().__init__()
        self.tokens = tokens
        self.places = nn.Embedding(places, tokens.words.embedding_dim)
        nn.init.normal_(self.places.weight, std=deviation)

    def forward(self, tokens_NT: Tensor) -> Tensor:
        """int64 [N, T], from the first token of a clip on, to float [N, T, D]."""
        place_T = torch.arange(tokens_NT.shape[1], device=tokens_NT.device)
        return self.tokens(tokens_NT) + self.places(place_T % self.places.num_embeddings)


def build(settings: WorldModelSettings, seed: int) -> PreTrainedModel:
    """A dense untrained model that reads and answers tokens of the settings' vocabularies."""
    shape, sizes, places = settings.model, settings.tokenizer.sizes, settings.places
    model = build_scratch(shape, sum(sizes), places * settings.video.frames, 0, seed)
    deviation = 1.0 if shape.scaled_embedding else shape.initial_deviation
    factorize(model, sizes, embedding=deviation, head=shape.initial_deviation, seed=seed)
    tokens = model.get_input_embeddings()
    assert isinstance(tokens, FactorizedEmbedding)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed + 1)
        model.set_input_embeddings(PlacedEmbedding(tokens, places, deviation))
    return model


@torch.no_grad()
def predicted(
    model: PreTrainedModel, tokens_NT: Tensor, *, context: int, mask_token_id: int, passes: int
) -> Tensor:
    """Clips whose first ``context`` tokens are those of ``tokens_NT``, and all others predicted.

    Every pass reads the clip with what is still masked of it, and keeps the tokens that the model
    is surest of, so that the share left masked follows the cosine of the training (MaskGIT, arXiv
    2202.04200). Each is the likeliest one: nothing is drawn.
    """
    tokens_NT = tokens_NT.clone()
    tokens_NT[:, context:] = mask_token_id
    clips, length = tokens_NT.shape
    mask = document_mask(torch.zeros_like(tokens_NT))
    position_NT = torch.arange(length, device=tokens_NT.device).expand_as(tokens_NT)
    head = model.get_output_embeddings()
    assert isinstance(head, FactorizedHead)
    for number in range(1, passes + 1):
        left = math.ceil(cosine_rate(number / passes) * (length - context))
        left = left if number < passes else 0
        hidden_NTD = hidden_states(model, tokens_NT, position_NT, mask)
        logits = logits_of(model, hidden_NTD[:, context:].flatten(0, 1), mask_token_id)
        token_NA, sure_NA = (found.reshape(clips, -1) for found in head.likeliest(logits))
        masked_NA = tokens_NT[:, context:] == mask_token_id
        order_NA = sure_NA.masked_fill(~masked_NA, -math.inf).argsort(-1, descending=True)
        place_NA = order_NA[:, : masked_NA[0].sum() - left]
        tokens_NT.scatter_(1, context + place_NA, token_NA.gather(1, place_NA))
    return tokens_NT
