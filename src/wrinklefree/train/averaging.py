"""Averages of the parameters in place of a decay of the learning rate.

A curriculum keeps its best rows for the end, where a decayed rate learns little from them, and
averaging lets the rate stay (arXiv 2511.18903). The average is of latent weights, so its ternary
codes are new ones: both models are measured after they are ternarized.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.mixture.loader import HeldOutData
from wrinklefree.quant.bitlinear import TernaryLayer
from wrinklefree.train.hooks import HELD_OUT, HeldOutLoss, Hook, Training
from wrinklefree.train.settings import AveragingSettings


class Averaging(Hook):
    """Keeps a mean of the parameters, and gives it to the model when all steps are taken.

    Parameters
    ----------
    steps : of the whole training.
    held_out : rows on which the last parameters and their average are compared.
    """

    name = "averaging"

    def __init__(
        self, settings: AveragingSettings, model: nn.Module, steps: int, held_out: HeldOutData
    ) -> None:
        self._settings = settings
        self._steps = steps
        self._held_out = HeldOutLoss(held_out)
        self._mean = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._count = 0
        last, whole = settings.last.model_dump(), {"steps": steps}
        self._of: dict[str, int] = last | whole if settings.name == "last" else {}
        self._facts: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """The mean by parameter, of how many it is, and what says which those are."""
        return {"count": self._count, "mean": dict(self._mean), "of": dict(self._of)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what ``state_dict`` gave, but for a mean of other models than are wanted now."""
        if state_dict["of"] != self._of:
            return
        self._count = state_dict["count"]
        for name, mean in self._mean.items():
            mean.copy_(state_dict["mean"][name])

    @torch.no_grad()
    def after_step(self, training: Training, entry: dict[str, float]) -> None:
        """Take the parameters into the mean, where it is time."""
        if not (weight := self._weight(training.state.step)):
            return
        self._count += 1
        for name, parameter in training.model.named_parameters():
            self._mean[name].lerp_(parameter, weight)

    def _weight(self, step: int) -> float:
        """Share of the present parameters in the new mean; 0: they are left out."""
        if self._settings.name == "ema":
            return 1 - self._settings.ema.decay if self._count else 1.0
        last = self._settings.last
        before_end = self._steps - step
        taken = before_end % last.interval == 0 and before_end // last.interval < last.checkpoints
        return 1 / (self._count + 1) if taken else 0.0

    @torch.no_grad()
    def on_stop(self, training: Training) -> None:
        """Compare both, and leave the average."""
        before, codes = self._loss(training), _codes(training.model)
        for name, parameter in training.model.named_parameters():
            parameter.copy_(self._mean[name])
        both = zip(codes, _codes(training.model), strict=True)
        changed = sum(int((old != new).sum()) for old, new in both)
        self._facts = {
            "averaged": self._count,
            "held_out_loss_last": before,
            "held_out_loss_averaged": self._loss(training),
        }
        if codes:
            entries = sum(code.numel() for code in codes)
            self._facts["codes_changed"] = changed / entries
        training.journal.say(
            f"{training.journal.label}: the average of {self._count} models: held out"
            f" {self._facts['held_out_loss_averaged']:.4f}, the last one alone {before:.4f}"
        )

    def facts(self) -> dict[str, Any]:
        """Both losses (nats per token), and the share of ternary codes that averaging changed."""
        return {"averaging": self._facts}

    def _loss(self, training: Training) -> float:
        measured = self._held_out.measure(training.train_step, training.runtime, training.settings)
        return measured[HELD_OUT]


def _codes(model: PreTrainedModel) -> list[Tensor]:
    return [
        layer.ternary_codes()[0] for layer in model.modules() if isinstance(layer, TernaryLayer)
    ]
