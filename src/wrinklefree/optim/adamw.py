"""AdamW of torch, with weight decay on hidden matrices only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from wrinklefree.optim.partition import partition_parameters
from wrinklefree.optim.settings import AdamWSettings


def adamw_groups(
    matrices: Sequence[nn.Parameter],
    others: Sequence[nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Parameter groups for ``torch.optim.AdamW``; an empty kind gives no group.

    Norms and biases are not decayed because zero is no neutral value for them, embeddings because
    the rows of rare tokens would shrink in steps in which they have no gradient.
    """
    kinds = [("matrix", matrices, weight_decay), ("other", others, 0.0)]
    return [
        {"params": list(group), "kind": kind, "lr": lr, "initial_lr": lr, "weight_decay": decay}
        for kind, group, decay in kinds
        if group
    ]


def build_adamw(model: PreTrainedModel, settings: AdamWSettings) -> Optimizer:
    """AdamW (arXiv 1711.05101) for every parameter of ``model``."""
    matrices, others = partition_parameters(model)
    return torch.optim.AdamW(
        adamw_groups(matrices, others, lr=settings.lr, weight_decay=settings.weight_decay),
        betas=(settings.betas[0], settings.betas[1]),
        eps=settings.eps,
    )
