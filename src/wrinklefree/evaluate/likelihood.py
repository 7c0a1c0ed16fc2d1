"""How well a model predicts held-out text, in nats per token.

For an autoregressive model this is its negative log-likelihood; for a block-diffusion model the
negative evidence lower bound (NELBO), an upper bound of its own negative log-likelihood that is
estimated by random masking. Only tokens whose predecessor is of the same document are scored.

Shapes: B rows, T tokens of a row, V vocabulary, M scored tokens of a domain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.diffusion.likelihood import negative_elbo
from wrinklefree.diffusion.shift import TokenShift
from wrinklefree.errors import UserError
from wrinklefree.evaluate.scores import (
    DomainScore,
    HeldOutScores,
    ModelScore,
    ScoreSums,
    domain_score,
    loss_variance,
    overall_score,
)
from wrinklefree.evaluate.settings import EvaluateSettings
from wrinklefree.mixture.batch import Batch
from wrinklefree.mixture.loader import HeldOutData
from wrinklefree.models.losses import token_losses
from wrinklefree.models.transforms import DiffuseBlocks, InsertBitlinear, ModelFormat

TokenScores = Callable[[Batch], tuple[Tensor, Tensor]]
"""Nats of every token (float64, 0 where it is not scored) and which are scored, [B, T] each."""


def score_model(
    name: str,
    model: PreTrainedModel,
    model_format: ModelFormat,
    held_out: HeldOutData,
    weights: dict[str, float],
    settings: EvaluateSettings,
    *,
    seed: int,
) -> ModelScore:
    """Held-out scores of a model on every domain that has held-out rows, and overall.

    Parameters
    ----------
    weights : of the mixture, by domain (see :func:`wrinklefree.evaluate.scores.overall_score`).
    seed : of the maskings that estimate a NELBO; without effect on an autoregressive model.

    Raises
    ------
    UserError : the model's vocabulary is smaller than the data's, a loss is not finite, or a domain
        of the mixture has no held-out rows.
    """
    vocabulary = model.config.vocab_size
    if vocabulary < held_out.vocabulary_size:
        raise UserError(
            f"model {name} has a vocabulary of {vocabulary}, the data of"
            f" {held_out.vocabulary_size}; model and mixture must come from the same tokenizer"
        )
    score = next_token_scores(model)
    if diffusion := model_format.find(DiffuseBlocks):
        score = _bound_scores(model, diffusion, settings.likelihood_draws, seed)
    domains: dict[str, DomainScore] = {}
    for domain in held_out.domains:
        found = held_out_scores(
            held_out,
            domain,
            score,
            model.device,
            rows=settings.rows_per_domain,
            batch_size=settings.batch_size,
        )
        if found.rows.tokens:
            domains[domain] = domain_score(found, f"model {name}, domain {domain}")
    return ModelScore(
        kind="block_diffusion" if diffusion else "autoregressive",
        quantized=model_format.find(InsertBitlinear) is not None,
        overall=overall_score(domains, weights),
        domains=domains,
        loss_variance=loss_variance(domains, weights),
    )


def held_out_scores(
    held_out: HeldOutData,
    domain: str,
    score: TokenScores,
    device: torch.device,
    *,
    rows: int,
    batch_size: int,
) -> HeldOutScores:
    """Sums by row and by document over up to ``rows`` held-out rows of a domain."""
    token_bytes_V = held_out.token_bytes_V.numpy()
    numbers = [np.empty((2, 0), dtype=np.int64)]
    values = [np.empty((2, 0))]
    for batch in held_out.batches(domain, rows=rows, batch_size=batch_size):
        nats_BT, scored_BT = (found.cpu().numpy() for found in score(batch.to(device)))
        row_BT = batch.sample_B[:, None].expand_as(batch.tokens_BT).numpy()
        numbers.append(np.stack([row_BT, batch.source_documents_BT.numpy()])[:, scored_BT])
        values.append(np.stack([nats_BT, token_bytes_V[batch.tokens_BT.numpy()]])[:, scored_BT])
    row_M, document_M = np.concatenate(numbers, axis=1)
    nats_M, bytes_M = np.concatenate(values, axis=1)
    return HeldOutScores(
        rows=_sums_by(row_M, nats_M, bytes_M), documents=_sums_by(document_M, nats_M, bytes_M)
    )


def _sums_by(number_M: np.ndarray, nats_M: np.ndarray, bytes_M: np.ndarray) -> ScoreSums:
    """Sums of the tokens that have the same number."""
    _, place_M = np.unique(number_M, return_inverse=True)
    return ScoreSums(
        nats=np.bincount(place_M, nats_M).tolist(),
        tokens=np.bincount(place_M).tolist(),
        bytes=np.bincount(place_M, bytes_M).astype(np.int64).tolist(),
    )


def next_token_scores(model: PreTrainedModel) -> TokenScores:
    """Negative log-likelihood (nats) of the tokens that have a predecessor in their document."""
    return lambda batch: (token_losses(model, batch), batch.has_predecessor_BT)


def _bound_scores(
    model: PreTrainedModel, diffusion: DiffuseBlocks, draws: int, seed: int
) -> TokenScores:
    """What each token adds to the NELBO of a block-diffusion model, the mean over draws."""

    def score(batch: Batch) -> tuple[Tensor, Tensor]:
        elbo = negative_elbo(
            model,
            batch,
            block_size=diffusion.block_size,
            token_shift=cast(TokenShift, diffusion.token_shift),
            mask_token_id=diffusion.mask_token_id,
            draws=draws,
            seed=seed,
        )
        return elbo.nats_DBT.mean(0), elbo.supervised_BT

    return score
