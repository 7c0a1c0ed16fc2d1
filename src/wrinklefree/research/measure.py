"""Held-out loss of every row and document, and what small trainings share.

Shapes: B rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.evaluate.likelihood import held_out_scores, next_token_scores
from wrinklefree.evaluate.scores import HeldOutScores
from wrinklefree.mixture.loader import HeldOutData
from wrinklefree.research.settings import MeasureSettings
from wrinklefree.tracking.files import sha256_of_json

_SEED_DIGITS = 12


@torch.no_grad()
def measure_held_out(
    model: PreTrainedModel, held_out: HeldOutData, settings: MeasureSettings
) -> dict[str, HeldOutScores]:
    """Losses of an autoregressive model on the same held-out rows of every domain, each time."""
    model.eval()
    return {
        domain: held_out_scores(
            held_out,
            domain,
            next_token_scores(model),
            model.device,
            rows=settings.rows_per_domain,
            batch_size=settings.batch_size,
        )
        for domain in held_out.domains
    }


def require_documents(held_out: HeldOutData, settings: MeasureSettings) -> None:
    """Raise UserError where the rows that are scored of a domain come from a single document."""
    for domain in held_out.domains:
        found: set[int] = set()
        for batch in held_out.batches(
            domain, rows=settings.rows_per_domain, batch_size=settings.batch_size
        ):
            scored_BT = batch.has_predecessor_BT
            found.update(batch.source_documents_BT[scored_BT].tolist())
        if len(found) < 2:
            raise UserError(
                f"the held-out rows of domain {domain} that measure.rows_per_domain"
                f" {settings.rows_per_domain} takes are from {len(found)} document, expected 2 or"
                " more to tell luck from a difference; raise rows_per_domain, held_out.fraction or"
                " the source's max_documents"
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
