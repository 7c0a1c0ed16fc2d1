"""Tokens of several small vocabularies: an embedding and a head without a row for every token.

A token is one number whose digits, in mixed radix and the first one the most significant, are words
of F vocabularies: of V1 x V2 x ... tokens only V1 + V2 + ... vectors are there (the token
factorization of MAGVIT-v2, arXiv 2310.05737). The mask token is the number behind the last token.

Shapes: F vocabularies, S their words in all, N tokens, D features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.kernels.vocabulary_loss import cross_entropy


def words_of(tokens: Tensor, sizes: Sequence[int]) -> Tensor:
    """The word of each token in every vocabulary, int64 [..., F]; ``sizes``: of vocabularies."""
    return torch.stack(torch.unravel_index(tokens, tuple(sizes)), -1)


class FactorizedEmbedding(nn.Module):
    """The vector of a token is the sum of its words'; the mask token has one of its own.

    Words begin with a standard deviation of ``deviation / sqrt(F)``, so that the sum of F
    independent ones has ``deviation``, whatever F.
    """

    first_F: Tensor

    def __init__(self, sizes: Sequence[int], features: int, deviation: float) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.mask_token_id = math.prod(sizes)
        self.words = nn.Embedding(sum(sizes) + 1, features)
        """Those of the first vocabulary, then of the second and so on; the mask token last."""
        first_F = torch.tensor([0, *accumulate(sizes[:-1])])
        self.register_buffer("first_F", first_F, persistent=False)
        nn.init.normal_(self.words.weight[:-1], std=deviation / math.sqrt(len(sizes)))
        nn.init.normal_(self.words.weight[-1], std=deviation)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [...] to float [..., D]."""
        masked = tokens == self.mask_token_id
        words_F = words_of(tokens.masked_fill(masked, 0), self.sizes) + self.first_F
        summed = self.words(words_F).sum(-2)
        return torch.where(masked[..., None], self.words.weight[-1], summed)


class FactorizedHead(nn.Linear):
    """A linear head for every vocabulary, side by side: logits of S words.

    A token's words are independent given what the model has read, so that its probability is the
    product of theirs. The mask token has no logit. Weights begin with ``deviation / sqrt(F)``, for
    a token's logit is the sum of its words'.
    """

    def __init__(self, sizes: Sequence[int], features: int, deviation: float) -> None:
        super().__init__(features, sum(sizes), bias=False)
        self.sizes = tuple(sizes)
        nn.init.normal_(self.weight, std=deviation / math.sqrt(len(sizes)))

    def word_losses(self, logits_NS: Tensor, target_N: Tensor) -> Tensor:
        """Cross-entropy (nats) of every word of each target, [N, F]; their sum is the token's."""
        parts = zip(
            logits_NS.split(self.sizes, -1), words_of(target_N, self.sizes).unbind(-1), strict=True
        )
        return torch.stack([cross_entropy(part, word_N) for part, word_N in parts], -1)

    def likeliest(self, logits_NS: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest token, int64 [N], and the logarithm of its probability, [N]."""
        token_N = logits_NS.new_zeros(len(logits_NS), dtype=torch.int64)
        log_N = logits_NS.new_zeros(len(logits_NS))
        for part, size in zip(logits_NS.split(self.sizes, -1), self.sizes, strict=True):
            best_N, word_N = part.log_softmax(-1).max(-1)
            token_N, log_N = token_N * size + word_N, log_N + best_N
        return token_N, log_N


def factorize(
    model: PreTrainedModel, sizes: Sequence[int], *, embedding: float, head: float, seed: int
) -> None:
    """Give an untrained ``model`` tokens of several vocabularies, in place.

    The same arguments give the same weights, and the global random state is left as it was.

    Parameters
    ----------
    sizes : words of each vocabulary, two or more.
    embedding, head : standard deviations at the beginning: of a token's vector, and of the weights
        that its logit is made with.
    """
    features = model.config.hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model.set_input_embeddings(FactorizedEmbedding(sizes, features, embedding))
        model.set_output_embeddings(FactorizedHead(sizes, features, head))
    model.config.vocab_size = math.prod(sizes) + 1
    model.config.tie_word_embeddings = False


def token_losses_of(model: PreTrainedModel, logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """Cross-entropy (nats) of each target, [N], by the head that made the logits."""
    head = model.get_output_embeddings()
    if isinstance(head, FactorizedHead):
        return head.word_losses(logits_NV, target_N).sum(-1)
    return cross_entropy(logits_NV, target_N)
