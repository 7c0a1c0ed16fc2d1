"""Checkpoints that a killed stage goes on from, with the same bytes at the end."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import nn

from wrinklefree.errors import UserError
from wrinklefree.tracking.artifact import Origin, writing_artifact
from wrinklefree.train.checkpoint import PARTS, WEIGHTS, checkpoint_settings, read_checkpoint
from wrinklefree.train.history import write_history

_KEEP = 2
_NAME = re.compile(r"step-(\d{8,})")


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
        """Write a checkpoint into ``work``, then drop all before it but the newest."""
        folder = work / f"step-{self.step:08d}"
        # One that was passed over may still stand there.
        shutil.rmtree(folder, ignore_errors=True)
        origin = Origin("checkpoint", {}, checkpoint_settings(work, self.step))
        with writing_artifact(folder, origin) as (partial, _):
            tensors = {name: p.detach().contiguous() for name, p in self._tensors().items()}
            save_file(tensors, partial / WEIGHTS)
            # An open file, because with a path torch hides why a write failed.
            with (partial / PARTS).open("wb") as file:
                torch.save({name: part.state_dict() for name, part in self.parts.items()}, file)
            write_history(partial, self.history)
        written = [path for step, path in _checkpoints(work) if step <= self.step]
        for old in written[:-_KEEP]:
            shutil.rmtree(old)

    def restore(self, work: Path) -> list[str]:
        """Go on from the newest checkpoint in ``work`` that is whole and of this training.

        Others are passed over, and stay where they are until training has come to their step.
        Nothing of them is used: each is read and checked as a whole first.

        Returns
        -------
        What was wrong with each checkpoint that was passed over.
        """
        complaints = []
        for step, folder in reversed(_checkpoints(work)):
            try:
                found = read_checkpoint(folder, step, self._tensors(), self.parts)
            except UserError as error:
                complaints.append(str(error))
                continue
            with torch.no_grad():
                for name, tensor in self._tensors().items():
                    tensor.copy_(found.tensors[name])
            for name, part in self.parts.items():
                part.load_state_dict(found.parts[name])
            self.history, self.step = found.history, step
            break
        return complaints

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Parameters by name; a tied one appears once."""
        return dict(self.model.named_parameters())


def _checkpoints(work: Path) -> list[tuple[int, Path]]:
    """(step, folder) in order of steps; what has another name is not ours."""
    if not work.is_dir():
        return []
    named = [(_NAME.fullmatch(path.name), path) for path in work.iterdir() if path.is_dir()]
    return sorted((int(match.group(1)), path) for match, path in named if match)
