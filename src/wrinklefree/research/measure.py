"""Held-out loss of every row, and what small trainings share.

Shapes: R held-out rows of a domain.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from wrinklefree.config.research import MeasureSettings
from wrinklefree.data.loader import HeldOutData
from wrinklefree.errors import UserError
from wrinklefree.evaluate.likelihood import scored_tokens, token_losses
from wrinklefree.evaluate.scores import DomainScore, domain_score
from wrinklefree.tracking.files import sha256_of_json

_SEED_DIGITS = 12


@dataclass(frozen=True)
class RowScores:
    """Sums over the scored tokens of each held-out row of a domain, in the order of the rows."""

    nats: list[float]
    tokens: list[int]
    bytes: list[int]

    def score(self, where: str) -> DomainScore:
        """The domain's loss; UserError if it is not finite, which ``where`` belongs to."""
        return domain_score(self.nats, self.tokens, self.bytes, where)

    def as_json(self) -> dict[str, Any]:
        """The three lists."""
        return {"nats": self.nats, "tokens": self.tokens, "bytes": self.bytes}


@torch.no_grad()
def measure_rows(
    model: PreTrainedModel, held_out: HeldOutData, settings: MeasureSettings
) -> dict[str, RowScores]:
    """Losses of an autoregressive model on the same held-out rows of every domain, each time.

    Raises
    ------
    UserError : a domain has fewer than two held-out rows with a scored token.
    """
    model.eval()
    token_bytes_V = held_out.token_bytes_V.to(model.device)
    scores = {}
    for domain in held_out.domains:
        rows = RowScores([], [], [])
        for batch in held_out.batches(
            domain, rows=settings.rows_per_domain, batch_size=settings.batch_size
        ):
            batch = batch.to(model.device)
            scored_BT = scored_tokens(batch.document_ids_BT)
            rows.nats.extend(token_losses(model, batch).sum(1).tolist())
            rows.tokens.extend(scored_BT.sum(1).tolist())
            rows.bytes.extend((token_bytes_V[batch.tokens_BT] * scored_BT).sum(1).tolist())
        if sum(count > 0 for count in rows.tokens) < 2:
            raise UserError(
                f"domain {domain} has {len(rows.tokens)} held-out rows, expected 2 or more to"
                " compare mixtures by; raise held_out.fraction or the source's max_documents"
            )
        scores[domain] = rows
    return scores


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
