"""Weights of the domains from how much training on each helps (seeds: influence-aware mixture).

A domain's score is the cosine between the step that the optimizer would take on its text and the
gradient of a held-out probe: to first order, how much that step lowers the probe's loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping


def smoothed_scores(
    before: Mapping[str, float], scores: Mapping[str, float], smoothing: float
) -> dict[str, float]:
    """Running mean of the scores by domain: ``smoothing`` is the weight of the past.

    The first score of a domain is taken as it is.
    """
    return {
        name: smoothing * before[name] + (1 - smoothing) * score if name in before else score
        for name, score in scores.items()
    }


def influence_weights(
    prior: Mapping[str, float], scores: Mapping[str, float], *, step_size: float, floor: float
) -> dict[str, float]:
    """``floor + rest * softmax(log prior + step_size * score)`` over the domains with a prior.

    Scores that are all equal, or a step size of 0, leave the prior as it is but for the floor. A
    domain whose prior is 0 stays at 0.

    Parameters
    ----------
    prior : shares of the training tokens, summing to 1.
    scores : of every domain with a prior, finite.
    floor : the least share of each of them; all floors together leave something.

    Raises
    ------
    ValueError : the scores are not of exactly these domains, or not finite. Going on without them
        would leave the weights as they are and look like a mixture that needs no change.
    """
    trained = [name for name, share in prior.items() if share > 0]
    if wrong := sorted(set(trained) ^ set(scores)):
        raise ValueError(f"scores and trained domains differ in {', '.join(wrong)}")
    if not all(map(math.isfinite, scores.values())):
        raise ValueError(f"scores are not finite: {dict(scores)}")
    highest = max(scores.values())
    raised = {n: prior[n] * math.exp(step_size * (scores[n] - highest)) for n in trained}
    rest, total = 1 - floor * len(trained), math.fsum(raised.values())
    weights = {name: floor + rest * raised[name] / total for name in trained}
    return {name: weights.get(name, 0.0) for name in prior}
