"""AdamW with its moments in eight bits for hidden matrices (arXiv 2110.02861).

Embeddings, heads, norms, biases and routers keep moments in full precision, as in the paper: their
gradients are uneven, and they are few in a large model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.kernels.momentum_8bit import move_average
from wrinklefree.kernels.momentum_8bit.reference import dequantize_blocks, zero_blocks
from wrinklefree.optim.adamw import (
    AdamW,
    adam_update,
    groups_of,
    hidden_and_others,
    scaled_by_root,
)
from wrinklefree.optim.combined import CombinedOptimizer
from wrinklefree.optim.contract import Group, PerParameterOptimizer
from wrinklefree.optim.settings import AdamWSettings


class AdamW8bit(PerParameterOptimizer):
    """AdamW with moments in blocks of eight-bit codes, of the dynamic maps.

    Its groups have ``lr``, ``betas``, ``eps`` and ``weight_decay``, as those of torch.
    """

    def initial_state(self, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        """See :class:`~wrinklefree.optim.contract.Part`."""
        mean_codes, mean_scales = zero_blocks(parameter, "dynamic")
        square_codes, square_scales = zero_blocks(parameter, "dynamic_unsigned")
        return {
            "step": torch.tensor(0.0),
            "mean_codes": mean_codes,
            "mean_scales": mean_scales,
            "square_codes": square_codes,
            "square_scales": square_scales,
        }

    def expected_update_norm(self, parameter: Tensor, group: Group) -> float:
        """See :class:`~wrinklefree.optim.contract.Part`: entries of size 1."""
        return math.sqrt(parameter.numel())

    def direction(self, parameter: Tensor, gradient: Tensor, group: Group) -> Tensor:
        """See :class:`~wrinklefree.optim.contract.Part`: by the running size of each entry."""
        state = self.state.get(parameter, {})
        if not state:
            return gradient.sign()
        square = dequantize_blocks(
            state["square_codes"], state["square_scales"], "dynamic_unsigned"
        )
        return scaled_by_root(gradient, square, state["step"], group)

    def step_parameter(
        self, parameter: nn.Parameter, state: dict[str, Tensor], group: Group
    ) -> None:
        """See :class:`~wrinklefree.optim.contract.PerParameterOptimizer`."""
        assert parameter.grad is not None
        state["step"] += 1
        mean = move_average(
            state["mean_codes"],
            state["mean_scales"],
            parameter.grad,
            1 - group["betas"][0],
            "dynamic",
        )
        square = move_average(
            state["square_codes"],
            state["square_scales"],
            parameter.grad,
            1 - group["betas"][1],
            "dynamic_unsigned",
            squared=True,
        )
        step, betas, eps = int(state["step"]), group["betas"], group["eps"]
        update = adam_update(mean, square, step, betas=betas, eps=eps)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])


def build_adamw8bit(model: PreTrainedModel, settings: AdamWSettings) -> CombinedOptimizer:
    """AdamW with eight-bit moments for hidden matrices, AdamW for the rest of ``model``."""
    hidden, others = hidden_and_others(model)
    shared = {"betas": (settings.betas[0], settings.betas[1]), "eps": settings.eps}
    decay, lr = settings.weight_decay, settings.lr
    hidden_groups = groups_of(hidden, lr=lr, weight_decay=decay)
    other_groups = groups_of(others, lr=lr, weight_decay=decay)
    return CombinedOptimizer([AdamW8bit(hidden_groups, shared), AdamW(other_groups, **shared)])
