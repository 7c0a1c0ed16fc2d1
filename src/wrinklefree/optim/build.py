"""The registry of optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from transformers import PreTrainedModel

from wrinklefree.optim.adamw import build_adamw
from wrinklefree.optim.muon import build_muon
from wrinklefree.optim.muonclip import build_muonclip
from wrinklefree.optim.settings import OptimizerSettings

OPTIMIZERS: dict[str, Callable[[PreTrainedModel, Any], Optimizer]] = {
    "adamw": build_adamw,
    "muon": build_muon,
    "muonclip": build_muonclip,
}


def build_optimizer(model: PreTrainedModel, settings: OptimizerSettings) -> Optimizer:
    """The optimizer of all parameters of ``model``.

    Each of its ``param_groups`` has ``lr``, ``initial_lr`` (its peak rate) and ``kind``: ``matrix``
    for 2-D weights inside decoder layers, ``other`` for all else. MuonClip also records attention
    logits of ``model``, so it must be the model that is trained.
    """
    return OPTIMIZERS[settings.name](model, settings.chosen)
