"""An objective asked about one batch, as the loop does it."""

from __future__ import annotations

from wrinklefree.train.objectives.objective import TrainStep


def evaluate(objective, model, batch, step=0, denominator=None):
    """What the corruption drew, and the loss."""
    prepared = objective.corruption.prepare(batch, step)
    if denominator is None:
        denominator = objective.corruption.denominator(prepared)
    return prepared, objective.loss(TrainStep(model, objective)(prepared), prepared, denominator)
