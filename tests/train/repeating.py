"""What must hold of a training whatever its model is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wrinklefree.train.loop import Trainer


def check_that_runs_are_the_same(make_trainer: Callable[..., Trainer]) -> None:
    """That neither a second run nor activation checkpointing changes a bit."""
    ends: list[list[Tensor]] = []
    histories = []
    for checkpointing in (False, False, True):
        trainer = make_trainer(activation_checkpointing=checkpointing)
        trainer.run()
        ends.append([parameter.detach() for parameter in trainer.model.parameters()])
        histories.append(trainer.state.history)
    for other in (1, 2):
        assert all(map(torch.equal, ends[0], ends[other]))
        assert histories[0] == histories[other]
