"""What of a model the classes of transformers cannot hold, known before it is trained."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from wrinklefree.models.layers import decoder_layers
from wrinklefree.quant.bitlinear import BitLinear
from wrinklefree.quant.packing import CODES_PER_BYTE

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Those whose norms and linear layers are known to be where ``export`` expects them."""


def export_obstacles(model: PreTrainedModel) -> list[str]:
    """Why the stage ``export`` would refuse a student of ``model``, dense or already ternary."""
    reasons = []
    if model.config.model_type not in ARCHITECTURES:
        reasons.append(
            f"its architecture is {model.config.model_type}, none of {', '.join(ARCHITECTURES)}"
        )
    if not model.config.rms_norm_eps > 0:
        reasons.append(f"rms_norm_eps is {model.config.rms_norm_eps}, expected above 0")
    if granularity := _granularities(model) - {"tensor"}:
        reasons.append(
            f"scales per {' and '.join(sorted(granularity))}, and a ternary layer of transformers"
            " has one"
        )
    for number, layer in enumerate(decoder_layers(model)):
        for name, module in layer.named_modules():
            if (
                isinstance(module, nn.Linear | BitLinear)
                and module.out_features % CODES_PER_BYTE != 0
            ):
                return [
                    *reasons,
                    f"{name} of layer {number} has {module.out_features} outputs, no multiple of"
                    f" {CODES_PER_BYTE}",
                ]
    return reasons


def _granularities(model: PreTrainedModel) -> set[str]:
    return {layer.granularity for layer in model.modules() if isinstance(layer, BitLinear)}
