"""What an experiment does to a training, and looks at, that no setting asks for."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from wrinklefree.train.hooks import Hook, Training

SPIKE = 100.0
UNMOVED = "train/unmoved"
OPERATIONS = "train/operations"


class GradientSpike(Hook):
    """Makes the gradients of one step, counted from 0, 100 times as large."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._handles: list[RemovableHandle] = []
        self._enlarged: dict[Tensor, Tensor] = {}

    def before_step(self, training: Training, step: int) -> dict[str, float]:
        """Enlarge what this step's backward passes bring."""
        if step == self._step:
            # Not hooks of the gradient: the head's is computed in the forward pass, and passed on.
            self._handles = [
                parameter.register_post_accumulate_grad_hook(self._enlarge)
                for parameter in training.model.parameters()
            ]
        return {}

    def after_step(self, training: Training, entry: dict[str, float]) -> None:
        """Leave the next one alone."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._enlarged = [], {}

    def _enlarge(self, parameter: Tensor) -> None:
        """What a micro-batch has added; what those before it added is enlarged already."""
        gradient, before = parameter.grad, self._enlarged.get(parameter)
        assert gradient is not None
        if before is None:
            gradient.mul_(SPIKE)
        else:
            gradient.sub_(before).mul_(SPIKE).add_(before)
        self._enlarged[parameter] = gradient.clone()


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


class UnmovedWeights(Hook):
    """The share of the weights of decoder layers that a step leaves exactly as they were.

    Embeddings don't count: they have rows that no text uses.
    """

    def before_step(self, training: Training, step: int) -> dict[str, float]:
        """Remember the weights."""
        layers = (p for name, p in training.model.named_parameters() if ".layers." in name)
        self._pairs = [(parameter, parameter.detach().clone()) for parameter in layers]
        return {}

    def after_step(self, training: Training, entry: dict[str, float]) -> None:
        """Compare."""
        same = sum(int((parameter == before).sum()) for parameter, before in self._pairs)
        entry[UNMOVED] = same / sum(before.numel() for _, before in self._pairs)


class StepOperations(Hook):
    """Floating-point operations of matrix products in the first step, the optimizer's too."""

    def __init__(self) -> None:
        self._counter = FlopCounterMode(display=False)
        self._counting = ExitStack()

    def before_step(self, training: Training, step: int) -> dict[str, float]:
        """Begin to count."""
        if step == 0:
            self._counting.enter_context(self._counter)
        return {}

    def after_step(self, training: Training, entry: dict[str, float]) -> None:
        """Note the count."""
        self.close()
        if training.state.step == 1:
            entry[OPERATIONS] = float(self._counter.get_total_flops())

    def close(self) -> None:
        """Count no more, also where the step was not taken to its end."""
        self._counting.close()
