"""The machine that a training runs on."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

Autocast = Literal["none", "bfloat16"]


@dataclass(frozen=True)
class Runtime:
    """One process on one device. Parameters are float32; ``autocast`` is what products run in."""

    device: torch.device
    autocast: Autocast

    @classmethod
    def here(cls, autocast: Autocast) -> Runtime:
        """A GPU where there is one."""
        return cls(torch.device("cuda" if torch.cuda.is_available() else "cpu"), autocast)

    def place(self, module: nn.Module) -> None:
        """Move a model to the device, in place."""
        nn.Module.to(module, self.device)  # transformers' own method hides its type

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """What forward passes run inside."""
        if self.autocast == "none":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)
