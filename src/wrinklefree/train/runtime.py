"""The machine that a training runs on."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn

from wrinklefree.kernels.capabilities import multiplies_faster
from wrinklefree.kernels.ternary_linear.products import chosen_back_end

Precision = Literal["fp32", "bfloat16"]


@dataclass(frozen=True)
class Runtime:
    """One process on one device. Parameters are float32; products run in ``precision``."""

    device: torch.device
    precision: Precision

    @classmethod
    def here(cls, precision: Literal["auto"] | Precision) -> Runtime:
        """A GPU where there is one. ``auto`` is bfloat16 where the machine multiplies it faster."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if precision == "auto":
            precision = "bfloat16" if multiplies_faster("bfloat16", device.type) else "fp32"
        return cls(device, cast(Precision, precision))

    def describe(self) -> str:
        """What products are computed in, for people."""
        ternary = chosen_back_end(self.device)
        return f"computes in {self.precision} on {self.device}, ternary products in {ternary}"

    def place(self, module: nn.Module) -> None:
        """Move a model to the device, in place."""
        nn.Module.to(module, self.device)  # transformers' own method hides its type

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """What forward passes run inside."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)
