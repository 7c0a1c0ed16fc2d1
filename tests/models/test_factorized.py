from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional

from wrinklefree.models.dense import build_scratch
from wrinklefree.models.factorized import (
    FactorizedEmbedding,
    FactorizedHead,
    factorize,
    token_losses_of,
    words_of,
)
from wrinklefree.models.losses import cross_entropies
from wrinklefree.models.settings import ModelSettings

SIZES = (3, 2, 4)
TOKENS = math.prod(SIZES)


def test_a_token_is_its_words_in_mixed_radix() -> None:
    expected = torch.tensor(list(itertools.product(*map(range, SIZES))))
    assert torch.equal(words_of(torch.arange(TOKENS), SIZES), expected)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_tokens_begin_with_the_same_deviation_however_many_vocabularies(count: int) -> None:
    features, words, deviation = 64, 512, 0.7
    embedding = FactorizedEmbedding([words] * count, features, deviation)
    # Each word once: their vectors are independent, and so are the tokens'.
    tokens = torch.zeros(words, dtype=torch.int64)
    for _ in range(count):
        tokens = tokens * words + torch.randperm(words)
    # The mean of n squares has a relative deviation of sqrt(2 / n).
    variance = embedding(tokens).square().mean()
    assert abs(variance / deviation**2 - 1) < 5 * math.sqrt(2 / (words * features))


def test_the_mask_token_begins_with_the_deviation_of_a_token() -> None:
    features = 4096
    embedding = FactorizedEmbedding([8, 8, 8, 8], features, 0.7)
    variance = embedding(torch.tensor(8**4)).square().mean()
    assert abs(variance / 0.7**2 - 1) < 5 * math.sqrt(2 / features)


def test_logits_of_tokens_begin_with_the_same_deviation_however_many_vocabularies() -> None:
    features, words = 64, 2048
    hidden = torch.ones(1, features)
    for count in (1, 4):
        head = FactorizedHead([words] * count, features, 0.1)
        parts = head(hidden)[0].reshape(count, words).sum(0)
        assert abs(parts.square().mean() / (0.1**2 * features) - 1) < 5 * math.sqrt(2 / words)


def test_a_vector_is_the_sum_of_its_words_and_no_row_is_stored_for_a_token() -> None:
    embedding = FactorizedEmbedding(SIZES, 5, 1.0)
    assert embedding.words.weight.shape == (sum(SIZES) + 1, 5)
    tables = embedding.words.weight[:-1].split(SIZES)
    for token in range(TOKENS):
        first, rest = divmod(token, 8)
        second, third = divmod(rest, 4)
        expected = tables[0][first] + tables[1][second] + tables[2][third]
        torch.testing.assert_close(embedding(torch.tensor(token)), expected)
    found = embedding(torch.tensor([[TOKENS, 3], [5, TOKENS]]))
    assert torch.equal(found[0, 0], embedding.words.weight[-1])
    assert torch.equal(found[1, 1], embedding.words.weight[-1])


def joint_logits(logits_NS: torch.Tensor) -> torch.Tensor:
    """Of every token, the slow way."""
    parts = logits_NS.split(SIZES, -1)
    tokens = itertools.product(*map(range, SIZES))
    columns = [sum(p[:, w] for p, w in zip(parts, words, strict=True)) for words in tokens]
    return torch.stack(columns, 1)  # pyright: ignore[reportArgumentType]


def test_a_head_answers_as_one_over_all_tokens_would() -> None:
    head = FactorizedHead(SIZES, 6, 1.0).double()
    logits = head(torch.randn(50, 6, dtype=torch.float64))
    assert logits.shape == (50, sum(SIZES))
    target, whole = torch.randint(TOKENS, (50,)), joint_logits(logits)
    expected = functional.cross_entropy(whole, target, reduction="none")
    losses = head.word_losses(logits, target)
    assert losses.shape == (50, 3)
    torch.testing.assert_close(losses.sum(-1), expected)
    token, probability = head.likeliest(logits)
    assert torch.equal(token, whole.argmax(-1))
    torch.testing.assert_close(probability, whole.log_softmax(-1).max(-1).values)


def shape(**changes: object) -> ModelSettings:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "layers": 1}
    return ModelSettings.model_validate(
        {**sizes, "heads": 2, "key_value_heads": 1, "scaled_embedding": True, **changes}
    )


def test_a_factorized_model_reads_and_scores_tokens_as_any_other_does() -> None:
    before = torch.random.get_rng_state()
    models = []
    for seed in (1, 1, 2):
        model = build_scratch(shape(), sum(SIZES), 12, 0, seed=7)
        factorize(model, SIZES, embedding=1.0, head=0.1, seed=seed)
        models.append(model)
    assert torch.equal(torch.random.get_rng_state(), before)
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["lm_head.weight"], states[2]["lm_head.weight"])
    assert models[0].config.vocab_size == TOKENS + 1
    hidden, target = torch.randn(9, 16), torch.randint(TOKENS, (9,))
    logits = models[0].lm_head(hidden)
    expected = functional.cross_entropy(joint_logits(logits), target, reduction="none")
    torch.testing.assert_close(token_losses_of(models[0], logits, target), expected)
    with torch.no_grad():
        torch.testing.assert_close(cross_entropies(models[0], hidden, target), expected)
