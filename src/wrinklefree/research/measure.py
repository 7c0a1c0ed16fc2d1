"""Held-out loss of every row and document, and what small trainings share.

Shapes: B rows of a batch, T tokens of a row, V ids of the vocabulary, M scored tokens of a domain.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from wrinklefree.config.research import MeasureSettings
from wrinklefree.data.loader import Batch, HeldOutData
from wrinklefree.errors import UserError
from wrinklefree.evaluate.likelihood import token_losses
from wrinklefree.evaluate.scores import DomainScore, domain_score
from wrinklefree.tracking.files import sha256_of_json

_SEED_DIGITS = 12


@dataclass(frozen=True)
class ScoreSums:
    """Sums over the scored tokens of each held-out row or document that has any, by its number."""

    nats: list[float]
    tokens: list[int]
    bytes: list[int]

    def score(self, where: str) -> DomainScore:
        """The domain's loss; UserError if it is not finite, which ``where`` belongs to."""
        return domain_score(self.nats, self.tokens, self.bytes, where)

    def as_json(self) -> dict[str, Any]:
        """The three lists."""
        return dict(vars(self))


@dataclass(frozen=True)
class HeldOutScores:
    """What a model reached on the held-out rows of a domain."""

    rows: ScoreSums
    documents: ScoreSums
    """Of each document that a row has a part of: all its parts in these rows together."""


@torch.no_grad()
def measure_held_out(
    model: PreTrainedModel, held_out: HeldOutData, settings: MeasureSettings
) -> dict[str, HeldOutScores]:
    """Losses of an autoregressive model on the same held-out rows of every domain, each time.

    Raises
    ------
    UserError : a domain has fewer than two held-out rows with a scored token.
    """
    model.eval()
    token_bytes_V = held_out.token_bytes_V.numpy()
    scores = {}
    for domain in held_out.domains:
        numbers: list[np.ndarray] = []
        values: list[np.ndarray] = []
        for batch in _batches(held_out, domain, settings):
            scored_BT = batch.has_predecessor_BT.numpy()
            row_BT = batch.sample_B[:, None].expand_as(batch.tokens_BT)
            places = (row_BT.numpy(), batch.source_documents_BT.numpy())
            numbers.append(np.stack([place_BT[scored_BT] for place_BT in places]))
            nats_BT = token_losses(model, batch.to(model.device)).cpu().numpy()
            bytes_BT = token_bytes_V[batch.tokens_BT.numpy()]
            values.append(np.stack([nats_BT[scored_BT], bytes_BT[scored_BT]]))
        row_M, document_M = np.concatenate(numbers, axis=1)
        nats_M, bytes_M = np.concatenate(values, axis=1)
        rows = _sums_by(row_M, nats_M, bytes_M)
        if len(rows.tokens) < 2:
            raise UserError(
                f"domain {domain} has {len(rows.tokens)} held-out rows, expected 2 or more to"
                " compare mixtures by; raise held_out.fraction or the source's max_documents"
            )
        scores[domain] = HeldOutScores(rows, _sums_by(document_M, nats_M, bytes_M))
    return scores


def require_documents(held_out: HeldOutData, settings: MeasureSettings) -> None:
    """Raise UserError where the rows that are scored of a domain come from a single document."""
    for domain in held_out.domains:
        found: set[int] = set()
        for batch in _batches(held_out, domain, settings):
            scored_BT = batch.has_predecessor_BT
            found.update(batch.source_documents_BT[scored_BT].tolist())
        if len(found) < 2:
            raise UserError(
                f"the held-out rows of domain {domain} that measure.rows_per_domain"
                f" {settings.rows_per_domain} takes are from {len(found)} document, expected 2 or"
                " more to tell luck from a difference; raise rows_per_domain, held_out.fraction or"
                " the source's max_documents"
            )


def _batches(held_out: HeldOutData, domain: str, settings: MeasureSettings) -> Iterator[Batch]:
    return held_out.batches(domain, rows=settings.rows_per_domain, batch_size=settings.batch_size)


def _sums_by(number_M: np.ndarray, nats_M: np.ndarray, bytes_M: np.ndarray) -> ScoreSums:
    """Sums of the tokens that have the same number."""
    _, place_M = np.unique(number_M, return_inverse=True)
    return ScoreSums(
        nats=np.bincount(place_M, nats_M).tolist(),
        tokens=np.bincount(place_M).tolist(),
        bytes=np.bincount(place_M, bytes_M).astype(np.int64).tolist(),
    )


def shared_seed(*key: str | int) -> int:
    """A seed that depends on the key alone: what two trainings shall have in common, or not."""
    return int(sha256_of_json(list(key))[:_SEED_DIGITS], 16)


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Compute with ``count`` threads inside the block, on which the last digits of sums depend."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def target_shares(target: dict[str, float] | None, present: dict[str, float]) -> dict[str, float]:
    """Share of each domain's loss in what counts; they sum to 1.

    Parameters
    ----------
    target : the setting; None for the weights of the mixture.
    present : weights of the mixture, of all its domains.

    Raises
    ------
    UserError : the target names a domain that the mixture does not have.
    """
    chosen = present if target is None else target
    if unknown := sorted(set(chosen) - set(present)):
        raise UserError(
            f"target names the domain {unknown[0]}, which the mixture does not have;"
            f" its domains: {', '.join(present)}"
        )
    total = sum(chosen.values())
    return {name: chosen.get(name, 0.0) / total for name in present}
