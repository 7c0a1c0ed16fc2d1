"""The distilled autoregressive student as a folder for stock transformers (``BitNetForCausalLM``).

Weights of the linear layers are written from the ternary codes of the latent weights, four in a
byte. Quantizing the quantized floats again would get the scale wrong: see the README of
``kernels/quantize_weight``.

Shapes: B rows, T tokens of a row, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import BitNetConfig, PreTrainedConfig, PreTrainedModel

from wrinklefree.config.outcome import ExportSettings
from wrinklefree.errors import UserError
from wrinklefree.export.card import write_model_card
from wrinklefree.export.gate import compare_with_stock
from wrinklefree.models.folder import (
    CONFIG,
    WEIGHTS,
    ModelFormat,
    copy_tokenizer,
    load_model,
    stored_tensors,
    write_json,
    write_tensors,
)
from wrinklefree.models.layers import decoder_layers
from wrinklefree.quant.bitlinear import BitLinear
from wrinklefree.quant.packing import CODES_PER_BYTE, pack_ternary
from wrinklefree.quant.ternary import ternary_codes

ACTIVATIONS = ("silu", "relu2")
"""What BitNet's gated MLP is known with, in transformers and in other runtimes."""

STOCK_NAMES = {
    "self_attn.o_proj.norm": "self_attn.attn_sub_norm",
    "self_attn.o_proj.linear": "self_attn.o_proj",
    "mlp.down_proj.norm": "mlp.ffn_sub_norm",
    "mlp.down_proj.linear": "mlp.down_proj",
}
"""Where transformers' BitNet has what we keep in a ``SublnLinear``."""


def export_hf(
    settings: ExportSettings, model: Path, folder: Path, *, tokens_BT: Tensor
) -> dict[str, Any]:
    """Write model folder ``model`` to ``folder`` so that ``AutoModelForCausalLM`` loads it.

    Parameters
    ----------
    tokens_BT : int64 rows of real text on which the written model, loaded by stock transformers,
        is compared with ours. A row may end in padding, end-of-text tokens that are read as text.

    Returns
    -------
    facts : sizes in bytes, and what the comparison found (see ``compare_with_stock``).

    Raises
    ------
    UserError : ``BitNetForCausalLM`` cannot hold the model.
    RuntimeError : the written model does not compute what ours computes.
    """
    loaded, model_format = load_model(model)
    check_exportable(model, loaded, model_format)
    write_tensors_for_stock(settings, loaded, folder)
    copy_tokenizer(model, folder)
    config = stock_config(settings, loaded.config)
    write_json(folder / CONFIG, config)
    write_json(folder / "generation_config.json", _generation_config(loaded.config))
    facts: dict[str, Any] = {
        "linear_class": settings.linear_class,
        "parameters": sum(parameter.numel() for parameter in loaded.parameters()),
        "float32_bytes": (model / WEIGHTS).stat().st_size,
        "exported_bytes": (folder / WEIGHTS).stat().st_size,
        "ternary_parameters": sum(
            module.weight.numel() for module in loaded.modules() if isinstance(module, BitLinear)
        ),
    }
    facts["gate"] = compare_with_stock(loaded, folder, tokens_BT)
    write_model_card(folder, loaded.config, facts)
    return facts


def check_exportable(path: Path, model: PreTrainedModel, model_format: ModelFormat) -> None:
    """Raise a UserError with every reason why ``BitNetForCausalLM`` cannot hold ``model``."""
    config = model.config
    reasons: list[str] = []
    if model_format.diffusion is not None:
        reasons.append("it is a block-diffusion model; export the autoregressive student")
    if not (model_format.subln and model_format.bitlinear):
        reasons.append("it lacks SubLN or ternary layers; export a trained student")
    features = config.num_attention_heads * config.head_dim
    if features != config.hidden_size:
        reasons.append(
            f"heads * head_dim is {features}, hidden_size {config.hidden_size}, and BitNet's"
            " attn_sub_norm has hidden_size features"
        )
    names = {name.rpartition(".")[2] for name, _ in decoder_layers(model)[0].named_modules()}
    if names & {"q_norm", "k_norm"}:
        reasons.append("it normalises queries and keys, and BitNet has no place for these gains")
    if config.hidden_act not in ACTIVATIONS:
        reasons.append(f"hidden_act is {config.hidden_act}, expected {' or '.join(ACTIVATIONS)}")
    if biased := [name for name, _ in model.named_parameters() if name.endswith(".bias")]:
        reasons.append(f"it has biases ({biased[0]})")
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or []):
        reasons.append("it has layers of windowed attention")
    if not reasons and config.model_type not in ("llama", "qwen2", "qwen3"):
        reasons.append(f"its architecture is {config.model_type}, not that of Llama")
    for name, module in model.named_modules():
        if isinstance(module, BitLinear) and module.out_features % CODES_PER_BYTE:
            reasons.append(
                f"{name} has {module.out_features} outputs, no multiple of {CODES_PER_BYTE}"
            )
            break
    if reasons:
        raise UserError(
            f"{path}: BitNetForCausalLM of transformers cannot hold this model: "
            + "; ".join(reasons)
        )


def stock_config(settings: ExportSettings, config: PreTrainedConfig) -> dict[str, Any]:
    """``config.json`` of the exported model."""
    stock = BitNetConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        hidden_act=config.hidden_act,
        max_position_embeddings=config.max_position_embeddings,
        initializer_range=config.initializer_range,
        rms_norm_eps=config.rms_norm_eps,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        tie_word_embeddings=config.tie_word_embeddings,
        rope_parameters=config.rope_parameters,
    )
    content = stock.to_dict()
    content["architectures"] = ["BitNetForCausalLM"]
    content["dtype"] = "float32"
    content["quantization_config"] = {
        "quant_method": "bitnet",
        "linear_class": settings.linear_class,
        "quantization_mode": "offline",
        # The norms are BitNet's own sub-norms, not ones inside of the linear layers.
        "use_rms_norm": False,
        "modules_to_not_convert": ["lm_head"],
    }
    return content


def write_tensors_for_stock(settings: ExportSettings, model: PreTrainedModel, folder: Path) -> None:
    """Write ``model.safetensors``: packed codes, scales, and everything else in float32."""
    tensors: dict[str, Tensor] = {}
    ternary = {id(module.weight) for module in model.modules() if isinstance(module, BitLinear)}
    for name, tensor in stored_tensors(model).items():
        stock_name = _stock_name(name)
        if id(tensor) in ternary:
            codes_ON, scale = ternary_codes(tensor.detach())
            # The one class divides by its scale, the other multiplies.
            factor = 1.0 / scale if settings.linear_class == "bitlinear" else scale
            tensors[stock_name] = pack_ternary(codes_ON)
            tensors[f"{stock_name}_scale"] = factor.reshape(1)
        else:
            tensors[stock_name] = tensor.detach()
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, tensors)


def _stock_name(name: str) -> str:
    for ours, stock in STOCK_NAMES.items():
        name = name.replace(ours, stock)
    return name


def _generation_config(config: PreTrainedConfig) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    return {**ids, "do_sample": False}
