"""Checkpoints that a killed stage goes on from, with the same bytes at the end."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import nn

from wrinklefree.errors import UserError
from wrinklefree.tracking.artifact import Origin, writing_artifact
from wrinklefree.tracking.trainings import checkpoints_in
from wrinklefree.train.checkpoint import (
    PARTS,
    WEIGHTS,
    Checkpoint,
    checkpoint_settings,
    read_checkpoint,
)
from wrinklefree.train.history import HistoryFile
from wrinklefree.train.runtime import Runtime

_KEEP = 2


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
    runtime: Runtime
    """Its precision on this machine is a part of the training: another one is another training. How
    many processes there are is not: they read and write the same checkpoints."""
    step: int = 0
    """Steps taken."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics of each step taken."""
    saved: int = 0
    """Steps of the newest checkpoint; 0: there is none."""
    file: HistoryFile = field(default_factory=HistoryFile)
    """The file of ``history`` up to the newest checkpoint."""
    reach: int = 0
    """Steps before the newest checkpoint that training may still go back."""

    def save(self, work: Path) -> None:
        """Write a checkpoint into ``work``, then drop all before it but the newest and those that
        training may go back to.

        One process writes it for all, and no other goes on before: a launcher ends all of them
        where one has ended. Nothing is done where the newest is of this step already.
        """
        if self.saved == self.step:
            return
        if self.runtime.leads:
            self._write(work)
        self.saved = self.step
        self.runtime.wait()

    def _write(self, work: Path) -> None:
        self.file.extend(work, self.history)  # before the checkpoint that counts on it
        folder = work / f"step-{self.step:08d}"
        # One that was passed over may still stand there.
        shutil.rmtree(folder, ignore_errors=True)
        origin = Origin("checkpoint", {}, checkpoint_settings(work, self.step))
        with writing_artifact(folder, origin) as (partial, facts):
            facts["history"] = self.file.record
            facts["precision"] = self.runtime.precision
            tensors = {name: p.detach().contiguous() for name, p in self._tensors().items()}
            save_file(tensors, partial / WEIGHTS)
            # An open file, because with a path torch hides why a write failed.
            with (partial / PARTS).open("wb") as file:
                torch.save({name: part.state_dict() for name, part in self.parts.items()}, file)
        written = [(step, path) for step, path in checkpoints_in(work) if step <= self.step]
        farthest = [step for step, _ in written if step <= self.step - self.reach][-1:]
        for step, old in written[:-_KEEP]:
            if farthest and step < farthest[0]:
                shutil.rmtree(old)

    def restore(self, work: Path, at_most: int | None = None) -> list[str]:
        """Go on from the newest checkpoint in ``work`` that is whole and of this training.

        Others are passed over, and stay where they are until training has come to their step.
        Nothing of them is used: each is read and checked as a whole first.

        Parameters
        ----------
        at_most : steps of a checkpoint that may be used; None: any.

        Returns
        -------
        What was wrong with each checkpoint that was passed over.

        Raises
        ------
        UserError : other processes of this training find other checkpoints.
        """
        complaints = []
        for step, folder in reversed(checkpoints_in(work)):
            if at_most is not None and step > at_most:
                continue
            try:
                precision = self.runtime.precision
                found = read_checkpoint(
                    folder, step, self._tensors(), self.parts, precision=precision
                )
            except UserError as error:
                complaints.append(str(error))
                continue
            self._load(found)
            self.saved, self.file = step, found.file
            break
        steps = self.runtime.gather(torch.tensor(self.step)).unique().tolist()
        if len(steps) > 1:
            raise UserError(
                f"{work}: the processes of this training find checkpoints of steps"
                f" {', '.join(map(str, steps))} there; give them a folder that all of them see"
            )
        return complaints

    def go_back(self, work: Path, step: int) -> bool:
        """Go back to the newest checkpoint of at most ``step`` steps, or else to the oldest.

        Later ones are removed, and damaged ones passed over. Returns whether there was one.
        """
        before = self.step
        steps = [number for number, _ in checkpoints_in(work) if number < before]
        if not steps:
            return False
        self.restore(work, max((number for number in steps if number <= step), default=steps[0]))
        if self.step == before:
            return False
        # All have read by now what one of them removes: restoring is over when all have done it.
        for number, folder in checkpoints_in(work) if self.runtime.leads else ():
            if number > self.step:
                shutil.rmtree(folder)
        return True

    def adopt(self, folder: Path, step: int) -> None:
        """Go on from the checkpoint of a training under other settings, code or inputs.

        The optimizer keeps its present settings and takes over the state that its parameters have.

        Raises
        ------
        UserError : the checkpoint is damaged, or of another model or optimizer.
        """
        self._load(read_checkpoint(folder, step, self._tensors(), self.parts, precision=None))

    def _load(self, found: Checkpoint) -> None:
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(found.tensors[name])
        for name, part in self.parts.items():
            part.load_state_dict(found.parts[name])
        self.history, self.step = found.history, len(found.history)

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Parameters by name; a tied one appears once."""
        return dict(self.model.named_parameters())
