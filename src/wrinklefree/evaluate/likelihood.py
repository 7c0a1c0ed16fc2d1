"""How well a model predicts held-out text, in nats per token.

For an autoregressive model this is its negative log-likelihood; for a block-diffusion model the
negative evidence lower bound (NELBO), an upper bound of its own negative log-likelihood that is
estimated by random masking. Only tokens whose predecessor is of the same document are scored.

Shapes: B rows, T tokens of a row, V vocabulary, D draws.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.config.outcome import EvaluateSettings
from wrinklefree.data.loader import Batch, HeldOutData
from wrinklefree.diffusion.likelihood import negative_elbo
from wrinklefree.diffusion.masks import find_blocks
from wrinklefree.diffusion.shift import TokenShift, supervised_tokens
from wrinklefree.errors import UserError
from wrinklefree.evaluate.scores import (
    DomainScore,
    ModelScore,
    domain_score,
    loss_variance,
    overall_score,
)
from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.folder import DiffusionFormat, ModelFormat
from wrinklefree.models.forward import next_token_logits


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
    domains: dict[str, DomainScore] = {}
    for domain in held_out.domains:
        nats, tokens, count_bytes = _score_rows(
            model, model_format.diffusion, held_out, domain, settings, seed
        )
        if any(tokens):
            where = f"model {name}, domain {domain}"
            domains[domain] = domain_score(nats, tokens, count_bytes, where)
    return ModelScore(
        kind="block_diffusion" if model_format.diffusion else "autoregressive",
        quantized=model_format.bitlinear,
        overall=overall_score(domains, weights),
        domains=domains,
        loss_variance=loss_variance(domains, weights),
    )


@torch.no_grad()
def token_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Negative log-likelihood (nats) of every scored token, float64 [B, T]; 0 elsewhere."""
    logits_BTV = next_token_logits(
        model,
        batch.tokens_BT,
        batch.positions_BT,
        causal_document_mask(batch.document_ids_BT),
    )
    scored_BT = batch.has_predecessor_BT
    loss_BT = torch.zeros(scored_BT.shape, dtype=torch.float64, device=scored_BT.device)
    # Row by row: the softmax of a whole batch would double the largest tensor there is.
    for loss_T, logits_TV, tokens_T in zip(loss_BT, logits_BTV, batch.tokens_BT, strict=True):
        loss_T[1:] = F.cross_entropy(logits_TV[:-1], tokens_T[1:], reduction="none").double()
    return torch.where(scored_BT, loss_BT, 0.0)


def _score_rows(
    model: PreTrainedModel,
    diffusion: DiffusionFormat | None,
    held_out: HeldOutData,
    domain: str,
    settings: EvaluateSettings,
    seed: int,
) -> tuple[list[float], list[int], list[int]]:
    """Nats, scored tokens and the bytes that they stand for, of every held-out row."""
    nats: list[float] = []
    tokens: list[int] = []
    count_bytes: list[int] = []
    token_bytes_V = held_out.token_bytes_V.to(model.device)
    batches = held_out.batches(
        domain, rows=settings.rows_per_domain, batch_size=settings.batch_size
    )
    for batch in batches:
        batch = batch.to(model.device)
        if diffusion:
            nats_B, scored_BT = _negative_elbo(
                model, batch, diffusion, settings.likelihood_draws, seed
            )
        else:
            nats_B = token_losses(model, batch).sum(1)
            scored_BT = batch.has_predecessor_BT
        nats += nats_B.tolist()
        tokens += scored_BT.sum(1).tolist()
        count_bytes += (token_bytes_V[batch.tokens_BT] * scored_BT).sum(1).tolist()
    return nats, tokens, count_bytes


def _negative_elbo(
    model: PreTrainedModel, batch: Batch, diffusion: DiffusionFormat, draws: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Mean over draws of each row's NELBO, float64 [B], and the tokens it counts, bool [B, T]."""
    token_shift = cast(TokenShift, diffusion.token_shift)
    elbo = negative_elbo(
        model,
        batch,
        block_size=diffusion.block_size,
        token_shift=token_shift,
        mask_token_id=diffusion.mask_token_id,
        draws=draws,
        seed=seed,
    )
    blocks = find_blocks(batch.document_ids_BT, batch.positions_BT, diffusion.block_size)
    scored_BT = supervised_tokens(batch.tokens_BT, blocks, token_shift, diffusion.mask_token_id)
    assert torch.equal(scored_BT.sum(1), elbo.tokens_B), "bytes must be those of the scored tokens"
    return elbo.nats_DB.mean(0), scored_BT
