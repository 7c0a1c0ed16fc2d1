"""The registry of optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from wrinklefree.optim.adamw import build_adamw
from wrinklefree.optim.adamw8bit import build_adamw8bit
from wrinklefree.optim.apollo import build_apollo, build_apollo_mini
from wrinklefree.optim.combined import CombinedOptimizer
from wrinklefree.optim.muon import build_muon
from wrinklefree.optim.muon8bit import build_muon8bit
from wrinklefree.optim.muonclip import build_muonclip
from wrinklefree.optim.normuon import build_normuon
from wrinklefree.optim.settings import OptimizerSettings

OPTIMIZERS: dict[str, Callable[[PreTrainedModel, Any], CombinedOptimizer]] = {
    "adamw": build_adamw,
    "muon": build_muon,
    "muonclip": build_muonclip,
    "normuon": build_normuon,
    "muon8bit": build_muon8bit,
    "apollo": build_apollo,
    "apollo_mini": build_apollo_mini,
    "adamw8bit": build_adamw8bit,
}


def build_optimizer(model: PreTrainedModel, settings: OptimizerSettings) -> CombinedOptimizer:
    """The optimizer of all parameters of ``model``.

    Each of its ``param_groups`` has ``lr``, ``initial_lr`` (its peak rate) and ``kind``
    (:mod:`~wrinklefree.optim.partition`). MuonClip also records attention logits of ``model``, so
    it must be the model that is trained.
    """
    return OPTIMIZERS[settings.name](model, settings.chosen)
