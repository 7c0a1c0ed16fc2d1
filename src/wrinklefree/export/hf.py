"""The distilled autoregressive student as a folder for stock transformers.

Weights of the linear layers are written from the ternary codes of the latent weights, four in a
byte. Quantizing the quantized floats again would get the scale wrong: see the README of
``kernels/quantize_weights``.

Shapes: B rows, T tokens of a row, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.evaluate.cost import cost_of
from wrinklefree.export.card import write_model_card
from wrinklefree.export.gate import check_tensors, compare_with_stock
from wrinklefree.export.layouts import Layout, layout_of
from wrinklefree.export.mlflow_model import write_mlflow_model
from wrinklefree.export.settings import ExportSettings
from wrinklefree.export.student import Student
from wrinklefree.models.folder import (
    CONFIG,
    WEIGHTS,
    copy_tokenizer,
    stored_tensors,
    write_json,
    write_tensors,
)
from wrinklefree.models.surgery import has_subln
from wrinklefree.quant.bitlinear import BitLinear
from wrinklefree.quant.packing import pack_ternary


def export_hf(
    settings: ExportSettings, student: Student, folder: Path, *, tokens_BT: Tensor
) -> dict[str, Any]:
    """Write ``student`` to ``folder`` so that ``AutoModelForCausalLM`` and MLflow load it.

    Parameters
    ----------
    tokens_BT : int64 rows of real text on which the written model, loaded by stock transformers,
        is compared with ours. A row may end in padding, end-of-text tokens that are read as text.

    Returns
    -------
    facts : sizes in bytes, and what the comparison found (see ``compare_with_stock``).

    Raises
    ------
    RuntimeError : the folder does not hold our tensors, or does not compute what ours computes.
    """
    model, layout = student.model, layout_of(student)
    write_tensors_for_stock(settings, layout, model, folder)
    write_beside_weights(folder, student, stock_config(settings, layout))
    write_mlflow_model(folder, layout.architecture)
    facts: dict[str, Any] = {
        "architecture": layout.architecture,
        "linear_class": settings.linear_class,
        "subln": has_subln(model),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "float32_bytes": (student.folder / WEIGHTS).stat().st_size,
        "exported_bytes": (folder / WEIGHTS).stat().st_size,
        "ternary_parameters": cost_of(model).ternary,
    }
    check_tensors(folder, model, layout)
    facts["gate"] = compare_with_stock(model, folder, tokens_BT)
    write_model_card(folder, model.config, facts)
    return facts


def stock_config(settings: ExportSettings, layout: Layout) -> dict[str, Any]:
    """``config.json`` of the exported model."""
    norms = {} if layout.epsilon is None else {"rms_norm_eps": layout.epsilon}
    return {
        **layout.plain_config("float32"),
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": settings.linear_class,
            "quantization_mode": "offline",
            # BitNetForCausalLM has the norms of SubLN itself, outside of the linear layers.
            "use_rms_norm": layout.epsilon is not None,
            **norms,
            "modules_to_not_convert": ["lm_head"],
        },
    }


def write_tensors_for_stock(
    settings: ExportSettings, layout: Layout, model: PreTrainedModel, folder: Path
) -> None:
    """Write ``model.safetensors``: packed codes, scales, and everything else in float32."""
    divides = settings.linear_class == "bitlinear"
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, BitLinear)}
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored_tensors(model).items():
        parent, _, kind = name.rpartition(".")
        if parent not in layers:
            tensors[name] = tensor.detach()
            continue
        codes_ON, scale = layers[parent].ternary_codes()
        if kind == "weight":
            # The one class divides by its scale, the other multiplies.
            tensors[name] = pack_ternary(codes_ON)
            tensors[f"{name}_scale"] = (1.0 / scale if divides else scale).reshape(1)
        elif kind == "bias":
            # The other class multiplies by its scale after it has added the bias.
            tensors[name] = tensor.detach() if divides else tensor.detach() / scale
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, layout.place(tensors))


def write_beside_weights(folder: Path, student: Student, stock: dict[str, Any]) -> None:
    """Write the student's tokenizer, and the configuration ``stock``."""
    copy_tokenizer(student.folder, folder)
    write_json(folder / CONFIG, stock)
    names, config = ("bos_token_id", "eos_token_id", "pad_token_id"), student.model.config
    ids = {name: value for name in names if (value := getattr(config, name)) is not None}
    write_json(folder / "generation_config.json", {**ids, "do_sample": False})
