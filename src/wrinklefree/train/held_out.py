"""The loss on held-out rows while a stage trains."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from wrinklefree.mixture.loader import HeldOutData
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.objectives.objective import Objective
from wrinklefree.train.settings import TrainingSettings

HELD_OUT = "held_out/loss"


class HeldOutLoss:
    """Cross-entropy on the same few held-out rows of each domain, each time it is measured.

    It is what ``train/loss`` is of training rows: the objective's own, at the present strength of
    quantization. Of a block-diffusion model that is the loss of masked tokens, under masks that are
    a function of the row alone; the stage ``evaluate`` has the likelihood, at many times the cost.
    """

    def __init__(self, stage: Stage, objective: Objective, settings: TrainingSettings) -> None:
        self._data = HeldOutData(stage.inputs["mixture"])
        self._objective = objective
        self._rows = settings.evaluate_rows_per_domain
        self._batch_size = settings.batch_size

    @torch.no_grad()
    def measure(
        self,
        model: PreTrainedModel,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> dict[str, float]:
        """Nats per token, as ``held_out/loss/<domain>`` and of all rows ``held_out/loss``.

        The model, and all that later steps depend on, is left as it was. A domain without held-out
        rows, or none whose tokens are asked for, has no metric.
        """
        was_training = model.training
        model.eval()
        try:
            sums = {name: self._sums(model, name, autocast) for name in self._data.domains}
        finally:
            model.train(was_training)
        sums[""] = tuple(map(sum, zip(*sums.values(), strict=True)))
        return {
            f"{HELD_OUT}/{name}".removesuffix("/"): loss / tokens
            for name, (loss, tokens) in sums.items()
            if tokens
        }

    def _sums(
        self,
        model: PreTrainedModel,
        domain: str,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]],
    ) -> tuple[float, ...]:
        """Nats and supervised tokens of a domain's rows."""
        loss = tokens = 0.0
        for batch in self._data.batches(domain, rows=self._rows, batch_size=self._batch_size):
            prepared = self._objective.prepare(batch.to(model.device), step=0)
            if not (denominator := self._objective.denominator(prepared)):
                continue
            with autocast():
                output = self._objective.loss(model, prepared, denominator)
            loss += output.row_loss_B.double().sum().item()
            tokens += output.row_tokens_B.sum().item()
        return loss, tokens
