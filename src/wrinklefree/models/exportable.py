"""What of a model transformers and llama.cpp cannot hold, known before it is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.models.depths import skipping_layers
from wrinklefree.models.layers import decoder_layers, head_size
from wrinklefree.quant.bitlinear import BitLinear, TernaryLayer
from wrinklefree.quant.packing import CODES_PER_BYTE
from wrinklefree.tokens.tokenizer import TOKENIZER_FILE

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Those whose norms and linear layers are known to be where ``export`` expects them."""
ACTIVATIONS = ("silu", "relu2")
"""What BitNet's gated MLP is known with, in transformers and in other runtimes."""
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_PRETOKENIZERS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (_QWEN2, "bytes"): "qwen2",
    (_LLAMA3, "bytes"): "llama-bpe",
}
"""Which of its own llama.cpp has to split text by, by the steps of ``tokenizer.json``."""
LLAMA3_ROPE = "llama3"
"""The scaling of rotary embeddings that llama.cpp's graph of Llama reads from a file."""
SMALLEST_BLOCK = 32
I2_S_BLOCK = 128
"""Weights of a block of bitnet.cpp's I2_S, which no row may leave unfinished."""
_QWEN2_BIASES = {"q_proj", "k_proj", "v_proj"}
"""Every Qwen2 has them, and llama.cpp's graph of it no others."""


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


def require_gguf(
    export: dict[str, Any], model: PreTrainedModel, tokenizer: Path, *, subln: bool
) -> None:
    """Raise a UserError where the section ``export`` asks for GGUF files by name and a student of
    ``model`` can't have any."""
    named, i2_s = export.get("gguf"), bool(export.get("i2_s"))
    asked = (named if isinstance(named, list) else []) + ["I2_S"] * i2_s
    if not asked or export.get("linear_class") == "none":
        return
    block = I2_S_BLOCK if i2_s else SMALLEST_BLOCK
    advice = "export nothing (export.linear_class: none)"
    if not (reasons := export_obstacles(model)):
        reasons = llama_cpp_obstacles(model, tokenizer, subln=subln, block=block)
        advice = "all but these files is written with export.gguf: if_possible"
        advice += " and export.i2_s: false" * i2_s
        if subln and not llama_cpp_obstacles(model, tokenizer, subln=False, block=block):
            advice += ", and these too without SubLN (subln.gain: none)"
    if reasons:
        raise UserError(
            f"export asks for {', '.join(asked)} in GGUF, and could not write them of what becomes"
            f" of this model: {'; '.join(reasons)}. Expected another model,"
            f" shape or quantizer; else {advice}"
        )


def fits_bitnet(model: PreTrainedModel) -> bool:
    """Whether BitNet has a place for everything in ``model``, in transformers and llama.cpp."""
    config = model.config
    names = {name.rpartition(".")[2] for name, _ in decoder_layers(model)[0].named_modules()}
    return (
        config.num_attention_heads * head_size(config) == config.hidden_size
        and not names & {"q_norm", "k_norm"}
        and config.hidden_act in ACTIVATIONS
        and not _biases(model)
        and not _has_windows(model)
    )


def llama_cpp_obstacles(
    model: PreTrainedModel, tokenizer: Path, *, subln: bool, block: int = SMALLEST_BLOCK
) -> list[str]:
    """Why llama.cpp would not run a student of ``model``, dense or already ternary, with or without
    SubLN, in blocks of so many weights."""
    config = model.config
    reasons = _obstacles_with_subln(model) if subln else _obstacles_without_subln(model)
    if config.hidden_act != "silu":
        reasons.append(f"its graph has SiLU, and here hidden_act is {config.hidden_act}")
    if granularity := _granularities(model) - {"tensor"}:
        reasons.append(f"scales per {' and '.join(sorted(granularity))}, and a file has one")
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if kind != "default" and not (
        kind == LLAMA3_ROPE and config.model_type == "llama" and not subln
    ):
        reasons.append(f"rotary embeddings of type {kind} are not written")
    sizes = {name: getattr(config, name) for name in ("hidden_size", "intermediate_size")}
    sizes["num_attention_heads * head_dim"] = config.num_attention_heads * head_size(config)
    for name, size in sizes.items():
        if size % block:
            reasons.append(f"{name} is {size}, no multiple of {block}")
    if pretokenizer_of(tokenizer) is None:
        reasons.append("its tokenizer splits text as none of llama.cpp's is known to")
    return reasons


def _obstacles_with_subln(model: PreTrainedModel) -> list[str]:
    """Of llama.cpp's graph ``bitnet``."""
    reasons, config = [], model.config
    if config.hidden_act in ACTIVATIONS and not fits_bitnet(model):
        reasons.append(
            f"its graph with SubLN is Llama's, and {config.model_type} here has biases, norms of"
            " queries and keys, windows of attention, or heads of a size of their own"
        )
    if not config.tie_word_embeddings:
        reasons.append(
            "its graph with SubLN has no head beside the embedding (tie_word_embeddings)"
        )
    return reasons


def _obstacles_without_subln(model: PreTrainedModel) -> list[str]:
    """Of the graph that llama.cpp has for the dense architecture."""
    kind = model.config.model_type
    if kind not in ARCHITECTURES:
        return [f"its graph of {kind} is not known here, only of {', '.join(ARCHITECTURES)}"]
    biases = _biases(model) - (_QWEN2_BIASES if kind == "qwen2" else set())
    reasons = [f"biases of {', '.join(sorted(biases))} are not written"] if biases else []
    if _has_windows(model):
        reasons.append("windows of attention are not written")
    return reasons


def _biases(model: PreTrainedModel) -> set[str]:
    """Names of the layers that have one, without what they are in."""
    return {name.split(".")[-2] for name, _ in model.named_parameters() if name.endswith(".bias")}


def _has_windows(model: PreTrainedModel) -> bool:
    kinds = getattr(model.config, "layer_types", None) or []
    return any(kind != "full_attention" for kind in kinds)


def pretokenizer_of(tokenizer: Path) -> str | None:
    """llama.cpp's name for how the tokenizer of a folder splits text; None if it has none.

    llama.cpp composes no characters, as NFC does: a text that is not composed it splits otherwise.
    """
    content = json.loads((tokenizer / TOKENIZER_FILE).read_text(encoding="utf-8"))
    normalizes = content.get("normalizer") not in (None, {"type": "NFC"})
    if content["model"]["type"] != "BPE" or normalizes:
        return None
    part = content["pre_tokenizer"] or {}
    found = _PRETOKENIZERS.get(tuple(map(_step, part.get("pretokenizers", [part]))))
    # A word that is a token is one, whatever is merged: of Llama 3's alone does llama.cpp say so.
    whole_words = content["model"].get("ignore_merges", False)
    return found if whole_words == (found == "llama-bpe") else None


def _step(step: dict[str, Any]) -> str | None:
    """How a step of a pre-tokenizer splits, in a word or by its pattern; None: in another way."""
    if step.get("add_prefix_space") or not step.get("individual_digits", True):
        return None
    if step.get("type") == "Split":
        plain = step["behavior"] == "Isolated" and not step["invert"]
        return step["pattern"].get("Regex") if plain else None
    return step.get("type") if step.get("use_regex", True) else "bytes"


def _granularities(model: PreTrainedModel) -> set[str]:
    return {layer.granularity for layer in model.modules() if isinstance(layer, TernaryLayer)}
