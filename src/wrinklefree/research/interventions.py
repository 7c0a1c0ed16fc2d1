"""What an experiment does to a training that no setting asks for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from wrinklefree.train.hooks import Hook, Training

SPIKE = 100.0


class GradientSpike(Hook):
    """Makes the gradients of one step, counted from 0, 100 times as large."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._handles: list[RemovableHandle] = []

    def before_step(self, training: Training, step: int) -> dict[str, float]:
        """Enlarge what this step's backward passes bring."""
        if step == self._step:
            self._handles = [
                parameter.register_hook(_enlarged) for parameter in training.model.parameters()
            ]
        return {}

    def after_step(self, training: Training, entry: dict[str, float]) -> None:
        """Leave the next one alone."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _enlarged(gradient: Tensor) -> Tensor:
    return gradient * SPIKE


class Bfloat16Parameters(Hook):
    """Rounds all parameters to bfloat16 after each update, as if they were stored so.

    Gradients, optimizer state and products stay fp32: what it shows is lost by the parameters'
    type alone.
    """

    def after_update(self, training: Training) -> None:
        """Round."""
        round_to_bfloat16(training.model)


@torch.no_grad()
def round_to_bfloat16(model: nn.Module) -> None:
    """Give every parameter the nearest value that bfloat16 has, in place; its type stays fp32."""
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())
