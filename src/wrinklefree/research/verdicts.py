"""What the trainings of an experiment say of each variant, and of what a document claims.

Shapes: S seeds, N held-out documents of a domain, P measurements during a training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wrinklefree.research.intervals import paired_difference, single_difference

ClaimVerdict = Literal["confirmed", "refuted", "undecided"]
Result = dict[str, Any]
"""``result.json`` of a training."""


@dataclass(frozen=True)
class Change:
    """A relative change of a measure: -0.5 is half of what it was."""

    mean: float
    low: float
    high: float


def loss_difference(
    variant: Sequence[Result],
    opponent: Sequence[Result],
    shares: dict[str, float],
    confidence: float,
) -> dict[str, Any]:
    """Loss of a variant less that of its opponent, nats per token: mean, low, high, verdict.

    Parameters
    ----------
    variant, opponent : of the same S seeds, in the same order. With S = 1 the interval is for the
        luck of held-out documents alone.
    """
    nats, tokens = {}, {}
    for domain in shares:
        pairs = [
            (ours["domains"][domain], theirs["domains"][domain])
            for ours, theirs in zip(variant, opponent, strict=True)
        ]
        assert all(ours["tokens"] == theirs["tokens"] for ours, theirs in pairs)
        nats[domain] = np.array([np.subtract(o["nats"], t["nats"]) for o, t in pairs])
        tokens[domain] = np.array(pairs[0][0]["tokens"])
    if len(variant) > 1:
        found = paired_difference(nats, tokens, shares, confidence)
    else:
        single = {domain: nats_SN[0] for domain, nats_SN in nats.items()}
        found = single_difference(single, tokens, shares, confidence)
    verdict = "undecided"
    if found.high < 0 or found.low > 0:
        verdict = "better" if found.high < 0 else "worse"
    return {"mean": found.mean, "low": found.low, "high": found.high, "verdict": verdict}


def relative_loss(
    variant: Sequence[Result],
    opponent: Sequence[Result],
    shares: dict[str, float],
    confidence: float,
) -> Change:
    """As :func:`loss_difference`, as a share of the opponent's mean loss over its seeds.

    All seeds share the documents, so that an interval over seeds alone leaves out their luck.
    """
    found = loss_difference(variant, opponent, shares, confidence)
    loss = float(np.mean([result["measures"]["loss"] for result in opponent]))
    return Change(*(found[value] / loss for value in ("mean", "low", "high")))


def relative_change(
    variant_S: Sequence[float], opponent_S: Sequence[float], confidence: float
) -> Change:
    """Geometric mean over seeds of variant / opponent, less 1, with Student's interval of the logs.

    Parameters
    ----------
    variant_S, opponent_S : positive, S at least 2, pair by pair of the same seed.
    """
    from scipy import stats

    log_S = np.log(np.array(variant_S) / np.array(opponent_S))
    error = float(log_S.std(ddof=1)) / math.sqrt(len(log_S))
    reach = float(stats.t.ppf(0.5 + confidence / 2, len(log_S) - 1)) * error
    mean = float(log_S.mean())
    return Change(*(math.expm1(value) for value in (mean, mean - reach, mean + reach)))


def claim_verdict(change: Change, claimed: float) -> ClaimVerdict:
    """Whether a measured change bears out a claimed fall (``claimed`` below 0).

    ``refuted``: the interval lies above it altogether, so that the fall is smaller than claimed or
    none. ``confirmed``: a fall that is real (the interval excludes 0) and may be as large.
    """
    if change.low > claimed:
        return "refuted"
    return "confirmed" if change.high < 0 else "undecided"


def tokens_needed(
    curve_P: Sequence[tuple[float, float]], opponent_P: Sequence[tuple[float, float]]
) -> float:
    """Tokens until a held-out curve has the other one's last loss, as a share of its last tokens.

    Linear between measurements; infinite if it never comes so low.

    Parameters
    ----------
    curve_P, opponent_P : (tokens, loss) by rising tokens.
    """
    goal_tokens, goal = opponent_P[-1]
    before: tuple[float, float] | None = None
    for tokens, loss in curve_P:
        if loss <= goal:
            if before is None:
                return tokens / goal_tokens
            part = (before[1] - goal) / (before[1] - loss)
            return (before[0] + part * (tokens - before[0])) / goal_tokens
        before = tokens, loss
    return math.inf
