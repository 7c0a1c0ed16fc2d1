"""Muon with its momentum in eight bits (arXiv 2509.23106).

Each step turns the codes into numbers, takes a step of Muon, and rounds the new momentum to codes
again. The weights stay as they are, in full precision.

Shapes: R rows, C columns of a weight; K matrices (none, or one leading dimension).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.kernels.momentum_8bit import move_average
from wrinklefree.kernels.momentum_8bit.reference import zero_blocks
from wrinklefree.optim.combined import CombinedOptimizer
from wrinklefree.optim.contract import Group
from wrinklefree.optim.muon import MuonLike, compute_of, muon_with_adamw
from wrinklefree.optim.newton_schulz import Coefficients, orthogonalize
from wrinklefree.optim.settings import Muon8bitSettings


class Muon8bit(MuonLike):
    """Muon with quantized momentum; see :class:`~wrinklefree.optim.muon.MuonLike`.

    ``quantization`` of a group is ``linear`` or ``dynamic``, see
    :data:`~wrinklefree.kernels.momentum_8bit.reference.Map`.
    """

    def initial_state(self, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        """See :class:`~wrinklefree.optim.contract.Part`."""
        codes, scales = zero_blocks(parameter, group["quantization"])
        return {"momentum_codes": codes, "momentum_scales": scales}

    def step_parameter(
        self, parameter: nn.Parameter, state: dict[str, Tensor], group: Group
    ) -> None:
        """See :class:`~wrinklefree.optim.contract.PerParameterOptimizer`."""
        assert parameter.grad is not None
        direction = move_average(
            state["momentum_codes"],
            state["momentum_scales"],
            parameter.grad,
            1 - group["momentum"],
            group["quantization"],
            nesterov=group["nesterov"],
            dtype=compute_of(group),
        )
        self.step_matrices(_update, parameter, [direction], group)


def _update(
    gradient_KRC: Tensor,
    direction_KRC: Tensor,
    *,
    coefficients: Coefficients,
    compute_dtype: torch.dtype,
    **settled: float,
) -> Tensor:
    """The update of Muon, [K, R, C]; momentum and Nesterov are in the direction."""
    return orthogonalize(direction_KRC, compute_dtype, coefficients)


def build_muon8bit(model: PreTrainedModel, settings: Muon8bitSettings) -> CombinedOptimizer:
    """Muon in eight bits for hidden matrices, AdamW in full precision for the rest."""
    choices = {"nesterov": settings.nesterov, "quantization": settings.quantization}
    return muon_with_adamw(Muon8bit, model, settings, **choices)
