"""What the rows of a step lost, over all of its micro-batches and processes.

Shapes: M micro-batches, B rows that a process reads of one, R processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wrinklefree.mixture.batch import Batch
from wrinklefree.stability.loss_variance import split_variance
from wrinklefree.train.objectives.objective import LossOutput
from wrinklefree.train.runtime import Runtime


@dataclass(frozen=True)
class StepTotals:
    """Sums over one step."""

    objective: float
    row_loss: float
    row_tokens: float
    domains: dict[str, float]
    """Metrics of what the rows of the step, and of each domain among them, lost."""
    terms: dict[str, float]
    tokens: int


def step_totals(
    batches: list[Batch], outputs: list[LossOutput], domains: list[str], runtime: Runtime
) -> StepTotals:
    """Add up what each process has read and lost of a step.

    Rows stand in the order of the data, so that the result does not depend on who read which.

    Parameters
    ----------
    batches, outputs : of the micro-batches, or of this process's share of them.
    domains : names, by index.
    """
    terms = summed_terms(outputs)
    objective, tokens, *summed = runtime.sum(
        sum(output.loss.item() for output in outputs),
        sum(int((batch.document_ids_BT >= 0).sum()) for batch in batches),
        *terms.values(),
    )
    read = ([o.row_loss_B for o in outputs], [o.row_tokens_B for o in outputs])
    rows_3MB = torch.stack(
        [torch.stack(each).double() for each in (*read, [batch.domain_B for batch in batches])]
    )
    loss_N, tokens_N, domain_N = runtime.gather(rows_3MB).movedim(0, 2).flatten(1)
    return StepTotals(
        objective=objective,
        row_loss=loss_N.sum().item(),
        row_tokens=tokens_N.sum().item(),
        domains=domain_metrics(loss_N, tokens_N, domain_N.long(), domains),
        terms=dict(zip(terms, summed, strict=True)),
        tokens=int(tokens),
    )


def summed_terms(outputs: Sequence[LossOutput]) -> dict[str, float]:
    """The terms of the micro-batches of a step."""
    terms: dict[str, float] = {}
    for output in outputs:
        for name, value in output.terms.items():
            terms[name] = terms.get(name, 0.0) + float(value)
    return terms


def domain_metrics(
    loss_B: Tensor, tokens_B: Tensor, domain_B: Tensor, names: list[str]
) -> dict[str, float]:
    """Loss of each domain in a step, its share of the supervised tokens, and the loss's variance.

    Parameters
    ----------
    loss_B, tokens_B : float64, summed nats and supervised tokens of each row of the step.
    domain_B : int64, index of each row's domain in ``names``.

    Returns
    -------
    ``train/loss/<domain>`` (nats per token) and ``train/share/<domain>`` of the domains that have
    supervised tokens; ``train/loss_variance`` over rows by tokens (nats²), which is the sum of
    ``train/loss_variance_within`` and ``train/loss_variance_between`` domains.
    """
    metrics: dict[str, float] = {}
    for index, name in enumerate(names):
        chosen_B = domain_B == index
        if (count := tokens_B[chosen_B].sum().item()) > 0:
            metrics[f"train/loss/{name}"] = loss_B[chosen_B].sum().item() / count
            metrics[f"train/share/{name}"] = count / tokens_B.sum().item()
    mean_B = loss_B / tokens_B.clamp(min=1.0)
    split = split_variance(*(t.cpu().numpy() for t in (mean_B, tokens_B, domain_B)))
    return metrics | {
        "train/loss_variance": split.total,
        "train/loss_variance_within": split.within,
        "train/loss_variance_between": split.between,
    }
