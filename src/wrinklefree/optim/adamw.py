"""AdamW of torch, with weight decay on hidden matrices and routers only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from transformers import PreTrainedModel

from wrinklefree.optim.combined import AfterStep, CombinedOptimizer
from wrinklefree.optim.contract import Group, Part
from wrinklefree.optim.partition import HIDDEN, Partition, partition_parameters
from wrinklefree.optim.settings import AdamWSettings, BesideAdamW


class AdamW(torch.optim.AdamW):
    """``torch.optim.AdamW`` (arXiv 1711.05101) that keeps the contract of this room.

    On a processor torch would choose a loop of whole-tensor operations; its fused kernel took a
    fifth of the time (134 M parameters, 2 cores).
    """

    def __init__(self, params: ParamsT, **choices: Any) -> None:
        super().__init__(params, **choices)
        if all(p.device.type == "cpu" for group in self.param_groups for p in group["params"]):
            for group in self.param_groups:
                group["fused"] = True

    def initial_state(self, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        """See :class:`~wrinklefree.optim.contract.Part`."""
        moment = torch.zeros_like(parameter)
        return {"step": torch.tensor(0.0), "exp_avg": moment, "exp_avg_sq": moment.clone()}

    def expected_update_norm(self, parameter: Tensor, group: Group) -> float:
        """See :class:`~wrinklefree.optim.contract.Part`: entries of size 1."""
        return math.sqrt(parameter.numel())

    def direction(self, parameter: Tensor, gradient: Tensor, group: Group) -> Tensor:
        """See :class:`~wrinklefree.optim.contract.Part`: by the running size of each entry."""
        state = self.state.get(parameter, {})
        if not state:
            return gradient.sign()
        return scaled_by_root(gradient, state["exp_avg_sq"], state["step"], group)


def adam_step(
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    step: int,
    *,
    betas: tuple[float, float],
    eps: float,
) -> Tensor:
    """The update of Adam (arXiv 1412.6980) at learning rate 1; moves both moments in place.

    All tensors are of one shape. ``step`` counts from 1.
    """
    mean.lerp_(gradient, 1 - betas[0])
    square.lerp_(gradient.square(), 1 - betas[1])
    return adam_update(mean, square, step, betas=betas, eps=eps)


def adam_update(
    mean: Tensor, square: Tensor, step: int, *, betas: tuple[float, float], eps: float
) -> Tensor:
    """As :func:`adam_step`, for moments that have moved."""
    root = (square / (1 - betas[1] ** step)).sqrt_().add_(eps)
    return (mean / (1 - betas[0] ** step)).div_(root)


def scaled_by_root(gradient: Tensor, square: Tensor, step: Tensor, group: Group) -> Tensor:
    """A gradient over the root of its running mean square, as Adam's update has it."""
    unbiased = square / (1 - group["betas"][1] ** float(step))
    return gradient / unbiased.sqrt().add_(group["eps"])


def groups_of(
    partitions: Iterable[Partition], *, lr: float, weight_decay: float = 0.0
) -> list[Group]:
    """Parameter groups with their peak rate.

    Norms and biases are not decayed because zero is no neutral value for them, embeddings because
    the rows of rare tokens would shrink in steps in which they have no gradient.
    """
    return [
        {
            "params": list(parameters),
            "kind": kind,
            "rows": rows,
            "lr": lr,
            "initial_lr": lr,
            "weight_decay": weight_decay if kind in (*HIDDEN, "router") else 0.0,
        }
        for kind, rows, parameters in partitions
    ]


def hidden_and_others(model: PreTrainedModel) -> tuple[list[Partition], list[Partition]]:
    """The partitions of hidden matrices, and all others."""
    partitions = partition_parameters(model)
    hidden = [partition for partition in partitions if partition.kind in HIDDEN]
    return hidden, [partition for partition in partitions if partition.kind not in HIDDEN]


def beside_adamw(
    hidden_optimizer: Callable[..., Part],
    model: PreTrainedModel,
    settings: BesideAdamW,
    after_step: AfterStep | None = None,
    **choices: Any,
) -> CombinedOptimizer:
    """An optimizer for hidden matrices, made with ``choices``, and AdamW for everything else."""
    hidden, others = hidden_and_others(model)
    groups = groups_of(hidden, lr=settings.lr, weight_decay=settings.weight_decay)
    adamw = AdamW(
        groups_of(others, lr=settings.adamw_lr),
        betas=(settings.adamw_betas[0], settings.adamw_betas[1]),
        eps=settings.adamw_eps,
    )
    return CombinedOptimizer([hidden_optimizer(groups, **choices), adamw], after_step)


def build_adamw(model: PreTrainedModel, settings: AdamWSettings) -> CombinedOptimizer:
    """AdamW for every parameter of ``model``."""
    groups = groups_of(
        partition_parameters(model), lr=settings.lr, weight_decay=settings.weight_decay
    )
    betas = (settings.betas[0], settings.betas[1])
    return CombinedOptimizer([AdamW(groups, betas=betas, eps=settings.eps)])
