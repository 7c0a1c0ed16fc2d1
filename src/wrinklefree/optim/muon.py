"""Muon: momentum orthogonalized by Newton-Schulz, for hidden matrices (Jordan et al. 2024).

Shapes: R rows, C columns of a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from wrinklefree.optim.adamw import adamw_groups
from wrinklefree.optim.combined import AfterStep, CombinedOptimizer
from wrinklefree.optim.newton_schulz import orthogonalize
from wrinklefree.optim.partition import partition_parameters
from wrinklefree.optim.settings import MuonBase, MuonSettings

Scale = Literal["original", "match_rms"]


def scale_factor(rows: int, columns: int, scale: Scale) -> float:
    """What the orthogonalized update is multiplied by, besides the learning rate.

    ``original`` keeps the operator norm comparable between shapes; ``match_rms``
    (arXiv 2502.16982) gives the update the RMS of AdamW's, about 0.2, whatever the shape.
    """
    if scale == "original":
        return math.sqrt(max(1.0, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))


def expected_update_norm(rows: int, columns: int, scale: Scale) -> float:
    """Frobenius norm of one update at learning rate 1, for a momentum of full rank.

    Five Newton-Schulz steps leave singular values of 0.9 in the root mean square.
    """
    return 0.9 * math.sqrt(min(rows, columns)) * scale_factor(rows, columns, scale)


def muon_step(
    weight_RC: Tensor,
    gradient_RC: Tensor,
    momentum_RC: Tensor,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    scale: Scale,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """One step of Muon; changes none of its arguments.

    Weight decay is decoupled: the weight shrinks by ``lr * weight_decay``, whatever the scale.

    Returns
    -------
    The new weight and the new momentum, both [R, C] in the dtype that they came in.
    """
    momentum_RC = torch.lerp(momentum_RC, gradient_RC, 1 - momentum)
    direction_RC = torch.lerp(gradient_RC, momentum_RC, momentum) if nesterov else momentum_RC
    update_RC = orthogonalize(direction_RC, compute_dtype).to(weight_RC.dtype)
    rows, columns = weight_RC.shape
    decayed_RC = weight_RC * (1 - lr * weight_decay)
    new_RC = torch.add(decayed_RC, update_RC, alpha=-lr * scale_factor(rows, columns, scale))
    return new_RC, momentum_RC


class Muon(Optimizer):
    """Muon on matrices; a parameter without gradient is left alone.

    Matrices are taken one by one: batching those of one shape into a ``bmm`` was 0-20 % slower on a
    CPU from 192 x 192 on.

    Parameters
    ----------
    parameters : 2-D parameters, or groups of them.
    compute_dtype : of Newton-Schulz, see :func:`~wrinklefree.optim.newton_schulz.orthogonalize`.

    Raises
    ------
    ValueError : a parameter is not 2-D.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        scale: Scale,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        defaults = {
            "lr": lr,
            "scale": scale,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
        }
        super().__init__(parameters, defaults)
        self._compute_dtype = compute_dtype
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon takes matrices only, got {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step for every parameter that has a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_parameter(parameter, group)
        return loss

    def _step_parameter(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        weight, state["momentum_buffer"] = muon_step(
            parameter,
            parameter.grad,
            state["momentum_buffer"],
            lr=group["lr"],
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            weight_decay=group["weight_decay"],
            scale=group["scale"],
            compute_dtype=self._compute_dtype,
        )
        parameter.copy_(weight)


def build_muon(model: PreTrainedModel, settings: MuonSettings) -> Optimizer:
    """Muon for hidden matrices, AdamW for every other parameter of ``model``."""
    return muon_with_adamw(model, settings, nesterov=settings.nesterov)


def muon_with_adamw(
    model: PreTrainedModel,
    settings: MuonBase,
    *,
    nesterov: bool,
    after_step: AfterStep | None = None,
) -> CombinedOptimizer:
    """As :func:`build_muon`, with the choices in which Muon and MuonClip differ."""
    matrices, others = partition_parameters(model)
    muon = Muon(
        [{"params": matrices, "kind": "matrix", "initial_lr": settings.lr}],
        lr=settings.lr,
        scale=settings.scale,
        momentum=settings.momentum,
        nesterov=nesterov,
        weight_decay=settings.weight_decay,
    )
    adamw = torch.optim.AdamW(
        adamw_groups([], others, lr=settings.adamw_lr, weight_decay=0.0),
        betas=(settings.adamw_betas[0], settings.adamw_betas[1]),
        eps=settings.adamw_eps,
    )
    return CombinedOptimizer([muon, adamw], after_step)
