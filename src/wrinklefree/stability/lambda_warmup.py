"""Lambda warmup for training loops of one's own; ours is ``quant.warmup``."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from wrinklefree.quant.bitlinear import set_quantization_lambda
from wrinklefree.quant.settings import LambdaWarmupSettings
from wrinklefree.quant.warmup import quantization_lambda


class LambdaWarmup:
    """Raises the strength of quantization from 0 (full precision) to 1 (ternary), step by step.

    Call ``warmup.step(model)`` before the forward pass of every optimizer step.

    Parameters
    ----------
    warmup_steps : 5 to 10 % of all steps is usual; 0: fully quantized from the first step.
    schedule : shape of the rise.
    """

    def __init__(
        self, *, warmup_steps: int = 1000, schedule: Literal["linear", "cosine"] = "linear"
    ) -> None:
        self._settings = LambdaWarmupSettings(warmup_steps=warmup_steps, schedule=schedule)
        self._steps = 0

    def step(self, model: nn.Module) -> float:
        """Give every ``BitLinear`` in ``model`` this step's strength, and return it."""
        strength = quantization_lambda(self._steps, self._settings)
        set_quantization_lambda(model, strength)
        self._steps += 1
        return strength

    def state_dict(self) -> dict[str, Any]:
        """How many steps were taken."""
        return {"steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._steps = state_dict["steps"]
