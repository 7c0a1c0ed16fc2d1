"""Muon with its momentum in eight bits (arXiv 2509.23106).

Each step turns the codes into numbers, takes a step of Muon, and rounds the new momentum to codes
again. The weights stay as they are, in full precision.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.optim.blockwise import dequantize_blocks, quantize_blocks, zero_blocks
from wrinklefree.optim.combined import CombinedOptimizer
from wrinklefree.optim.contract import Group
from wrinklefree.optim.muon import MuonLike, muon_step, muon_with_adamw
from wrinklefree.optim.settings import Muon8bitSettings


class Muon8bit(MuonLike):
    """Muon with quantized momentum; see :class:`~wrinklefree.optim.muon.MuonLike`.

    ``quantization`` of a group is ``linear`` or ``dynamic``, see
    :mod:`~wrinklefree.optim.blockwise`.
    """

    def initial_state(self, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        """See :class:`~wrinklefree.optim.contract.Part`."""
        codes, scales = zero_blocks(parameter, group["quantization"])
        return {"momentum_codes": codes, "momentum_scales": scales}

    def step_parameter(
        self, parameter: nn.Parameter, state: dict[str, Tensor], group: Group
    ) -> None:
        """See :class:`~wrinklefree.optim.contract.PerParameterOptimizer`."""
        kind = group["quantization"]
        momentum = dequantize_blocks(state["momentum_codes"], state["momentum_scales"], kind)
        self.step_matrices(muon_step, parameter, [momentum], group)
        state["momentum_codes"], state["momentum_scales"] = quantize_blocks(momentum, kind)


def build_muon8bit(model: PreTrainedModel, settings: Muon8bitSettings) -> CombinedOptimizer:
    """Muon in eight bits for hidden matrices, AdamW in full precision for the rest."""
    choices = {"nesterov": settings.nesterov, "quantization": settings.quantization}
    return muon_with_adamw(Muon8bit, model, settings, **choices)
