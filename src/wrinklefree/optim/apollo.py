"""APOLLO: AdamW's step sizes, estimated from a random projection (arXiv 2412.05270).

Adam's moments are kept of ``P G``, a projection of the gradient to r rows, and not of the gradient.
How much Adam would stretch each channel (column) of ``P G`` is how much that of ``G`` is stretched.
Weights of more rows than columns are taken the other way round. APOLLO-Mini is rank 1, where one
factor for the whole matrix is all that can be told, times sqrt(128).

Shapes: D the smaller side of a weight, C its larger side (the channels), r rank, E matrices.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.optim.adamw import adam_step, beside_adamw
from wrinklefree.optim.combined import CombinedOptimizer
from wrinklefree.optim.contract import Group, PerParameterOptimizer
from wrinklefree.optim.partition import matrices
from wrinklefree.optim.settings import ApolloMiniSettings, ApolloSettings

REFRESH_STEPS = 200
"""Steps for which a projection is used."""
LARGEST_GROWTH = 1.01
"""Of the norm of an update over that of the last one."""
MINI_SCALE = math.sqrt(128)
_SMALLEST = 1e-30


def projection(rank: int, side: int, seed: int, device: torch.device) -> Tensor:
    """Random numbers of variance 1/r, float32 [r, D]; drawn anew from the seed and never stored."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(rank, side, generator=generator, device=device) / math.sqrt(rank)


def apollo_step(
    gradient_DC: Tensor,
    projection_rD: Tensor,
    mean_rC: Tensor,
    square_rC: Tensor,
    norm: Tensor,
    step: int,
    *,
    betas: tuple[float, float],
    eps: float,
    per_channel: bool,
    scale: float,
) -> Tensor:
    """The update of APOLLO at learning rate 1, [D, C]; moves both moments and ``norm`` in place.

    Parameters
    ----------
    norm : of the last update, no dimensions; 0 where there was none.
    step : counted from 1.
    """
    projected_rC = projection_rD @ gradient_DC
    stretched_rC = adam_step(projected_rC, mean_rC, square_rC, step, betas=betas, eps=eps)
    across = 0 if per_channel else (0, 1)
    before = torch.linalg.vector_norm(projected_rC, dim=across)
    factor = torch.linalg.vector_norm(stretched_rC, dim=across) / before.clamp(min=_SMALLEST)
    update_DC = gradient_DC * (factor * scale)
    unlimited = torch.linalg.vector_norm(update_DC)
    most = torch.where(norm > 0, norm * LARGEST_GROWTH, torch.inf)
    norm.copy_(torch.minimum(unlimited, most))
    return update_DC.mul_(norm / unlimited.clamp(min=_SMALLEST))


class Apollo(PerParameterOptimizer):
    """APOLLO for hidden matrices.

    Its groups have ``lr``, ``rank``, ``per_channel``, ``scale``, ``betas``, ``eps``, ``rows`` and
    ``weight_decay`` (decoupled). A rank above the smaller side of a matrix is that side.
    """

    sizes = ("step", "square", "norm")

    def __init__(self, groups: Iterable[Group], **settings: Any) -> None:
        super().__init__(groups, settings)
        hidden = (parameter for group in self.param_groups for parameter in group["params"])
        self._number = {id(parameter): number for number, parameter in enumerate(hidden)}

    def initial_state(self, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        """See :class:`~wrinklefree.optim.contract.Part`."""
        pieces = matrices(parameter, group["rows"])
        entries = sum(_rank(piece, group) * max(piece.shape) for piece in pieces)
        return {
            "step": torch.tensor(0.0),
            "mean": parameter.new_zeros(entries),
            "square": parameter.new_zeros(entries),
            "norm": parameter.new_zeros(len(pieces)),
        }

    def expected_update_norm(self, parameter: Tensor, group: Group) -> float:
        """See :class:`~wrinklefree.optim.contract.Part`: Adam's, of the projected gradient."""
        pieces = matrices(parameter, group["rows"])
        entries = sum(_rank(piece, group) * max(piece.shape) for piece in pieces)
        return group["scale"] * math.sqrt(entries)

    def step_parameter(
        self, parameter: nn.Parameter, state: dict[str, Tensor], group: Group
    ) -> None:
        """See :class:`~wrinklefree.optim.contract.PerParameterOptimizer`."""
        assert parameter.grad is not None
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        self._add_update(parameter, parameter.grad, state, group, self._number[id(parameter)])

    @torch.no_grad()
    def direction(self, parameter: Tensor, gradient: Tensor, group: Group) -> Tensor:
        """See :class:`~wrinklefree.optim.contract.Part`: by the projection of ``parameter``."""
        update, state = torch.zeros_like(parameter), self.state_without_momentum(parameter, group)
        alone = group | {"lr": 1.0, "betas": (0.0, group["betas"][1])}
        self._add_update(update, gradient, state, alone, self._number[id(parameter)])
        return -update

    def _add_update(
        self,
        parameter: Tensor,
        its_gradient: Tensor,
        state: dict[str, Tensor],
        group: Group,
        number: int,
    ) -> None:
        """Move ``parameter`` and ``state``; projections are drawn by the parameter's ``number``."""
        state["step"] += 1
        step, start = int(state["step"]), 0
        views = (matrices(tensor, group["rows"]) for tensor in (parameter, its_gradient))
        for index, (weight, gradient) in enumerate(zip(*views, strict=True)):
            tall = weight.shape[0] > weight.shape[1]
            weight_DC, gradient_DC = (weight.mT, gradient.mT) if tall else (weight, gradient)
            rank, (side, channels) = _rank(weight, group), weight_DC.shape
            stop = start + rank * channels
            place = ((step - 1) // REFRESH_STEPS, number, index)
            # Hashed, for a generator on a CPU takes no more than the lower 32 bits of a seed.
            seed = zlib.crc32(repr(place).encode())
            update_DC = apollo_step(
                gradient_DC,
                projection(rank, side, seed, weight.device),
                state["mean"][start:stop].view(rank, channels),
                state["square"][start:stop].view(rank, channels),
                state["norm"][index],
                step,
                **{name: group[name] for name in ("betas", "eps", "per_channel", "scale")},
            )
            weight_DC.add_(update_DC, alpha=-group["lr"])
            start = stop


def _rank(matrix: Tensor, group: Group) -> int:
    return min(group["rank"], *matrix.shape)


def build_apollo(model: PreTrainedModel, settings: ApolloSettings) -> CombinedOptimizer:
    """APOLLO for hidden matrices, AdamW for every other parameter of ``model``."""
    return _build(model, settings, rank=settings.rank, per_channel=True, scale=1.0)


def build_apollo_mini(model: PreTrainedModel, settings: ApolloMiniSettings) -> CombinedOptimizer:
    """APOLLO of rank 1 for hidden matrices, AdamW for every other parameter of ``model``."""
    return _build(model, settings, rank=1, per_channel=False, scale=MINI_SCALE)


def _build(model: PreTrainedModel, settings: ApolloMiniSettings, **choices: Any):
    betas = (settings.adamw_betas[0], settings.adamw_betas[1])
    return beside_adamw(Apollo, model, settings, betas=betas, eps=settings.adamw_eps, **choices)
