from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.evaluate.likelihood import score_model
from wrinklefree.evaluate.scores import ModelScore
from wrinklefree.evaluate.settings import EvaluateSettings
from wrinklefree.mixture.batch import Batch
from wrinklefree.mixture.loader import HeldOutData
from wrinklefree.models import forward
from wrinklefree.models.losses import token_losses
from wrinklefree.models.transforms import DiffuseBlocks, ModelFormat

SETTINGS = EvaluateSettings(
    rows_per_domain=100, batch_size=3, likelihood_draws=2, prompts=["the"], new_tokens=3
)
WEIGHTS = {"code": 0.25, "prose": 0.75, "spare": 0.0}
DIFFUSION = DiffuseBlocks(block_size=4, token_shift="clean_boundary", mask_token_id=2)


def _score(
    model: PreTrainedModel,
    held_out: HeldOutData,
    settings: EvaluateSettings = SETTINGS,
    diffusion: DiffuseBlocks | None = None,
    seed: int = 5,
) -> ModelScore:
    model_format = ModelFormat().then(*filter(None, [diffusion]))
    return score_model("m", model, model_format, held_out, WEIGHTS, settings, seed=seed)


@pytest.fixture(scope="module")
def held_out(mixture: Path) -> HeldOutData:
    return HeldOutData(mixture)


@pytest.fixture(scope="module")
def uniform(tiny_llama) -> PreTrainedModel:
    model = tiny_llama(0)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    return model


@torch.no_grad()
@pytest.mark.parametrize("least", [256, 5])
def test_losses_are_those_of_each_document_read_alone_in_double_precision(
    tiny_llama, held_out: HeldOutData, monkeypatch, least
):
    monkeypatch.setattr(forward, "LEAST_TOKENS", least)
    monkeypatch.setattr("wrinklefree.kernels.sum_by_blocks.BLOCK_NUMBERS", 0)
    model = tiny_llama(1).double()
    for batch in held_out.batches("prose", rows=7, batch_size=7):
        expected = torch.zeros(batch.tokens_BT.shape, dtype=torch.float64)
        for row, documents in enumerate(batch.document_ids_BT):
            for document in documents.unique().tolist():
                where = (documents == document).nonzero().flatten()
                if document < 0 or len(where) < 2:
                    continue
                tokens = batch.tokens_BT[row, where]
                logits = model(input_ids=tokens[None]).logits[0]
                for index in range(1, len(where)):
                    probability = logits[index - 1].softmax(0)[tokens[index]]
                    expected[row, where[index]] = -probability.log()
        torch.testing.assert_close(token_losses(model, batch), expected, rtol=1e-12, atol=1e-12)
        assert (expected > 0).sum() == batch.has_predecessor_BT.sum()


def test_a_model_of_uniform_logits_costs_the_logarithm_of_its_vocabulary(
    uniform: PreTrainedModel, held_out: HeldOutData
):
    found = _score(uniform, held_out)
    for domain in held_out.domains:
        score = found.domains[domain].score
        count_bytes = tokens = 0
        for batch in held_out.batches(domain, rows=100, batch_size=100):
            scored = batch.has_predecessor_BT
            tokens += int(scored.sum())
            count_bytes += int(held_out.token_bytes_V[batch.tokens_BT[scored]].sum())
        assert (found.domains[domain].tokens, found.domains[domain].bytes) == (tokens, count_bytes)
        assert score.loss == pytest.approx(math.log(300), rel=1e-6)
        assert score.perplexity == pytest.approx(300, rel=1e-5)
        bits = tokens * math.log2(300) / count_bytes
        assert score.bits_per_byte == pytest.approx(bits, rel=1e-6)
        assert score.loss_standard_error == pytest.approx(0.0, abs=1e-6)
    assert found.overall.loss == pytest.approx(math.log(300), rel=1e-6)


def test_a_diffusion_model_of_uniform_logits_costs_the_same_less_its_mask_token(
    uniform: PreTrainedModel, held_out: HeldOutData
):
    # The mask token can't be predicted: one choice fewer.
    found = _score(uniform, held_out, diffusion=DIFFUSION)
    assert found.kind == "block_diffusion"
    assert found.overall.loss == pytest.approx(math.log(299), rel=1e-6)
    autoregressive = _score(uniform, held_out)
    assert found.overall.bytes_per_token == autoregressive.overall.bytes_per_token


def test_block_size_one_read_off_clean_rows_is_the_autoregressive_loss(
    tiny_llama, held_out: HeldOutData
):
    model = tiny_llama(2)
    head = nn.Linear(32, 300)
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        # A mask token that is never predicted: what the two normalisations would differ in.
        head.bias.zero_()[2] = -1e4
    model.lm_head = head
    one = DIFFUSION.model_copy(update={"block_size": 1})
    bound, loss = (_score(model, held_out, diffusion=form).overall.loss for form in (one, None))
    assert bound == pytest.approx(loss, rel=1e-6)
    assert bound != pytest.approx(_score(model, held_out, diffusion=DIFFUSION).overall.loss)


@pytest.mark.parametrize("diffusion", [None, DIFFUSION])
def test_batch_size_does_not_change_results(
    tiny_llama, held_out: HeldOutData, diffusion: DiffuseBlocks | None
):
    model = tiny_llama(1)
    whole, single = (
        _score(model, held_out, SETTINGS.model_copy(update={"batch_size": size}), diffusion)
        for size in (50, 1)
    )
    assert whole.overall.loss == pytest.approx(single.overall.loss, rel=1e-6)
    for domain in held_out.domains:
        assert whole.domains[domain].tokens == single.domains[domain].tokens


def test_rows_per_domain_is_how_many_rows_are_read_where_there_are_as_many(
    tiny_llama, held_out: HeldOutData
):
    settings = SETTINGS.model_copy(update={"rows_per_domain": 4})
    found = _score(tiny_llama(1), held_out, settings)
    assert {name: domain.rows for name, domain in found.domains.items()} == {
        "code": 4,
        "prose": 4,
        "spare": 3,
    }


@pytest.mark.parametrize("diffusion", [None, DIFFUSION])
def test_parts_of_a_document_in_several_rows_are_one_document(
    tiny_llama,
    held_out: HeldOutData,
    monkeypatch: pytest.MonkeyPatch,
    diffusion: DiffuseBlocks | None,
):
    model = tiny_llama(1)
    alone = _score(model, held_out, diffusion=diffusion)
    batches = held_out.batches

    def of_two_documents(*arguments: Any, **options: Any) -> Iterator[Batch]:
        for batch in batches(*arguments, **options):
            parity_BT = batch.sample_B[:, None].expand_as(batch.tokens_BT) % 2
            yield replace(batch, source_documents_BT=parity_BT)

    monkeypatch.setattr(held_out, "batches", of_two_documents)
    joined = _score(model, held_out, diffusion=diffusion)
    for domain, found in joined.domains.items():
        assert (found.documents, found.rows) == (2, alone.domains[domain].rows)
        assert found.score.loss == alone.domains[domain].score.loss
        assert found.score.loss_standard_error != alone.domains[domain].score.loss_standard_error


def test_draws_and_seed_change_an_estimated_bound_and_no_exact_loss(
    tiny_llama, held_out: HeldOutData
):
    model = tiny_llama(1)
    more = SETTINGS.model_copy(update={"likelihood_draws": 9})
    bound = _score(model, held_out, diffusion=DIFFUSION).overall.loss
    assert _score(model, held_out, diffusion=DIFFUSION).overall.loss == bound
    assert _score(model, held_out, more, DIFFUSION).overall.loss != bound
    assert _score(model, held_out, diffusion=DIFFUSION, seed=6).overall.loss != bound
    assert _score(model, held_out) == _score(model, held_out, more, seed=6)


def test_more_draws_bring_an_estimate_nearer_to_its_mean(tiny_llama, held_out: HeldOutData):
    model = tiny_llama(1, scale=0.6)

    def spread(draws: int) -> float:
        settings = SETTINGS.model_copy(update={"likelihood_draws": draws, "batch_size": 10})
        losses = [
            _score(model, held_out, settings, DIFFUSION, seed=seed).overall.loss
            for seed in range(20)
        ]
        return torch.tensor(losses).std().item()

    assert spread(16) < 0.6 * spread(1)


def test_a_model_of_a_smaller_vocabulary_is_refused(tiny_llama, held_out: HeldOutData):
    model = tiny_llama(0)
    model.resize_token_embeddings(200)
    with pytest.raises(UserError, match="vocabulary of 200, the data of 300"):
        _score(model, held_out)


def test_a_model_that_says_nan_is_refused_by_name(tiny_llama, held_out: HeldOutData):
    model = tiny_llama(0)
    with torch.no_grad():
        model.lm_head.weight[7, 0] = math.nan
    with pytest.raises(UserError, match="model m, domain code: the held-out loss is nan"):
        _score(model, held_out)
