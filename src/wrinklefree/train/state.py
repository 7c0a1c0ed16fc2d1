"""Checkpoints that a killed stage goes on from, with the same bytes at the end."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from wrinklefree.errors import UserError
from wrinklefree.tracking.artifact import Origin, open_artifact, writing_artifact
from wrinklefree.train.history import read_history, write_history

_KEEP = 2
_PREFIX = "step-"


class Stateful(Protocol):
    """An optimizer, a clipper: what has a state to save."""

    def state_dict(self) -> dict[str, Any]:
        """The state, in types that ``torch.load`` takes with ``weights_only``."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Put back what ``state_dict`` gave."""
        ...


@dataclass
class TrainingState:
    """All that the next step depends on besides settings and data."""

    model: nn.Module
    parts: dict[str, Stateful]
    """Optimizer and others, by name."""
    step: int = 0
    """Steps taken."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics of each step taken."""

    def save(self, work: Path) -> None:
        """Write a checkpoint into ``work``, then drop all but the newest two."""
        origin = Origin("checkpoint", {}, {"step": self.step}, "", {})
        with writing_artifact(work / f"{_PREFIX}{self.step:08d}", origin) as (folder, _):
            tensors = {name: p.detach().contiguous() for name, p in self._tensors().items()}
            save_file(tensors, folder / "model.safetensors")
            # An open file, because with a path torch hides why a write failed.
            with (folder / "parts.pt").open("wb") as file:
                torch.save({name: part.state_dict() for name, part in self.parts.items()}, file)
            write_history(folder, self.history)
        for old in _checkpoints(work)[:-_KEEP]:
            shutil.rmtree(old)

    def restore(self, work: Path) -> str | None:
        """Load the newest whole checkpoint in ``work``.

        Returns
        -------
        What was wrong with checkpoints that were passed over, or None.
        """
        complaint = None
        for checkpoint in reversed(_checkpoints(work)):
            try:
                open_artifact(checkpoint)
            except UserError as error:
                complaint = str(error)
                shutil.rmtree(checkpoint)  # or it would count as one of the newest to keep
                continue
            self._load(checkpoint)
            break
        return complaint

    def _load(self, checkpoint: Path) -> None:
        saved = load_file(checkpoint / "model.safetensors")
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(saved[name])
        parts = torch.load(checkpoint / "parts.pt", map_location="cpu", weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(parts[name])
        self.history = read_history(checkpoint)
        self.step = len(self.history)

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Parameters by name; a tied one appears once."""
        return dict(self.model.named_parameters())


def _checkpoints(work: Path) -> list[Path]:
    return sorted(work.glob(f"{_PREFIX}*")) if work.is_dir() else []
