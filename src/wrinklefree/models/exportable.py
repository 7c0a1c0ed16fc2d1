"""What of a model transformers and llama.cpp cannot hold, known before it is trained."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from wrinklefree.models.depths import skipping_layers
from wrinklefree.models.layers import decoder_layers
from wrinklefree.quant.bitlinear import BitLinear, TernaryLayer
from wrinklefree.quant.packing import CODES_PER_BYTE
from wrinklefree.tokens.tokenizer import TOKENIZER_FILE

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Those whose norms and linear layers are known to be where ``export`` expects them."""
ACTIVATIONS = ("silu", "relu2")
"""What BitNet's gated MLP is known with, in transformers and in other runtimes."""
_PRETOKENIZERS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
}
"""Which of its own llama.cpp has to split text by, by the steps of ``tokenizer.json``."""
_SMALLEST_BLOCK = 32


def export_obstacles(model: PreTrainedModel) -> list[str]:
    """Why the stage ``export`` would refuse a student of ``model``, dense or already ternary."""
    reasons = []
    if model.config.model_type not in ARCHITECTURES:
        reasons.append(
            f"its architecture is {model.config.model_type}, none of {', '.join(ARCHITECTURES)}"
        )
    if skipping_layers(model):
        reasons.append("some of its layers leave tokens out")
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


def fits_bitnet(model: PreTrainedModel) -> bool:
    """Whether BitNet has a place for everything in ``model``, in transformers and llama.cpp."""
    config = model.config
    names = {name.rpartition(".")[2] for name, _ in decoder_layers(model)[0].named_modules()}
    head_size = getattr(config, "head_dim", None)  # which Qwen2 has not
    return (
        head_size in (None, config.hidden_size // config.num_attention_heads)
        and not names & {"q_norm", "k_norm"}
        and config.hidden_act in ACTIVATIONS
        and not any(name.endswith(".bias") for name, _ in model.named_parameters())
        and all(kind == "full_attention" for kind in getattr(config, "layer_types", None) or [])
    )


def llama_cpp_obstacles(model: PreTrainedModel, tokenizer: Path) -> list[str]:
    """Why llama.cpp would not run a student of ``model``, dense or already ternary."""
    reasons, config = [], model.config
    if config.hidden_act != "silu":
        reasons.append(f"its graph with SubLN has SiLU, and here hidden_act is {config.hidden_act}")
    elif not fits_bitnet(model):
        reasons.append(
            f"its graph with SubLN is Llama's, and {config.model_type} here has biases, norms of"
            " queries and keys, windows of attention, or heads of a size of their own"
        )
    if granularity := _granularities(model) - {"tensor"}:
        reasons.append(f"scales per {' and '.join(sorted(granularity))}, and a file has one")
    if not config.tie_word_embeddings:
        reasons.append("its graph has no head beside the embedding (tie_word_embeddings)")
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if kind != "default":
        reasons.append(f"rotary embeddings of type {kind} are not written")
    for name in ("hidden_size", "intermediate_size"):
        if (size := getattr(config, name)) % _SMALLEST_BLOCK:
            reasons.append(f"{name} is {size}, no multiple of {_SMALLEST_BLOCK}")
    if pretokenizer_of(tokenizer) is None:
        reasons.append("its tokenizer splits text as none of llama.cpp's is known to")
    return reasons


def pretokenizer_of(tokenizer: Path) -> str | None:
    """llama.cpp's name for how the tokenizer of a folder splits text; None if it has none."""
    content = json.loads((tokenizer / TOKENIZER_FILE).read_text(encoding="utf-8"))
    if content["model"]["type"] != "BPE" or content.get("normalizer"):
        return None
    part = content["pre_tokenizer"] or {}
    steps = part.get("pretokenizers", [part])
    plain = all(
        step.get("individual_digits", True)
        and step.get("use_regex", True)
        and not step.get("add_prefix_space")
        for step in steps
    )
    return _PRETOKENIZERS.get(tuple(step.get("type") for step in steps)) if plain else None


def _granularities(model: PreTrainedModel) -> set[str]:
    return {layer.granularity for layer in model.modules() if isinstance(layer, TernaryLayer)}
