"""NorMuon: Muon whose rows are normalised by their running mean square (arXiv 2510.05491).

Orthogonalized updates have rows (output neurons) of very different norms. Here each is divided by
the root of the running mean of its mean square, and the whole is given its Frobenius norm back, so
that an update is as large as Muon's. (The paper sets the root mean square to 0.2 where five
Newton-Schulz steps leave 0.18.)

Shapes: R rows, C columns of a weight; K matrices (none, or one leading dimension).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.optim.combined import CombinedOptimizer
from wrinklefree.optim.contract import Group
from wrinklefree.optim.muon import MuonLike, muon_step, muon_with_adamw
from wrinklefree.optim.newton_schulz import Coefficients
from wrinklefree.optim.settings import NorMuonSettings

_SMALLEST = 1e-8


def normuon_step(
    gradient_KRC: Tensor,
    momentum_KRC: Tensor,
    square_KR1: Tensor,
    *,
    momentum: float,
    nesterov: bool,
    row_decay: float,
    coefficients: Coefficients = "classic",
    compute_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The update of NorMuon at learning rate 1, before any scale, [K, R, C].

    Momentum and ``square_KR1``, the running mean square of each row, are moved in place. The latter
    starts at 0 and needs no correction: a common factor is undone with the norm.
    """
    update_KRC = muon_step(
        gradient_KRC,
        momentum_KRC,
        momentum=momentum,
        nesterov=nesterov,
        coefficients=coefficients,
        compute_dtype=compute_dtype,
    ).to(square_KR1.dtype)
    square_KR1.lerp_(update_KRC.square().mean(dim=-1, keepdim=True), 1 - row_decay)
    normalised_KRC = update_KRC / square_KR1.sqrt().add_(_SMALLEST)
    norm, its_norm = (x.norm(dim=(-2, -1), keepdim=True) for x in (update_KRC, normalised_KRC))
    return normalised_KRC.mul_(norm / its_norm.clamp(min=_SMALLEST))


class NorMuon(MuonLike):
    """NorMuon; see :class:`~wrinklefree.optim.muon.MuonLike`."""

    sizes = ("row_square",)

    def initial_state(self, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        """See :class:`~wrinklefree.optim.contract.Part`."""
        rows = parameter.new_zeros((*parameter.shape[:-1], 1))
        return {"momentum_buffer": torch.zeros_like(parameter), "row_square": rows}

    def step_parameter(
        self, parameter: nn.Parameter, state: dict[str, Tensor], group: Group
    ) -> None:
        """See :class:`~wrinklefree.optim.contract.PerParameterOptimizer`."""
        states = [state["momentum_buffer"], state["row_square"]]
        decay = group["row_decay"]
        self.step_matrices(normuon_step, parameter, states, group, row_decay=decay)


def build_normuon(model: PreTrainedModel, settings: NorMuonSettings) -> CombinedOptimizer:
    """NorMuon for hidden matrices, AdamW for every other parameter of ``model``."""
    choices = {"nesterov": settings.nesterov, "row_decay": settings.row_decay}
    return muon_with_adamw(NorMuon, model, settings, **choices)
