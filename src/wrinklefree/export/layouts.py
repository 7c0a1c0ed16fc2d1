"""How stock transformers holds a ternary model.

One without SubLN stays in the class of its dense architecture, where transformers replaces linear
layers by ternary ones. With SubLN there are two ways. ``BitNetForCausalLM`` has these norms built
in, and nothing that Llama lacks: no norms of queries and keys, no biases, no heads of a size of
their own. A model that has any of these stays in the class of its dense architecture, with ternary
layers that begin with an RMSNorm each (``use_rms_norm``). In ``o_proj`` and ``down_proj`` that is
SubLN; in the other five it must do nothing (``_idle_norms``).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BitNetConfig, PreTrainedConfig

from wrinklefree.export.student import Student
from wrinklefree.models.exportable import fits_bitnet
from wrinklefree.models.folder import CONFIG
from wrinklefree.models.surgery import has_subln

BITNET_NAMES = {
    "self_attn.o_proj.norm": "self_attn.attn_sub_norm",
    "self_attn.o_proj.linear": "self_attn.o_proj",
    "mlp.down_proj.norm": "mlp.ffn_sub_norm",
    "mlp.down_proj.linear": "mlp.down_proj",
}
"""Where transformers' BitNet has what we keep in a ``SublnLinear``."""

DENSE_NAMES = {
    "self_attn.o_proj.norm": "self_attn.o_proj.rms_norm",
    "self_attn.o_proj.linear": "self_attn.o_proj",
    "mlp.down_proj.norm": "mlp.down_proj.rms_norm",
    "mlp.down_proj.linear": "mlp.down_proj",
}
"""The same in the class of the dense architecture."""

NORMED = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
"""The norms of a decoder layer, and which linear layers read what they put out."""

_LOST_BITS = 14
"""A number 2^-14 times another's root adds nothing to it in float32 when it is squared."""


@dataclass(frozen=True)
class Layout:
    """The file format of one exported model."""

    architecture: str
    """The class of transformers that loads it."""
    config: dict[str, Any]
    """``config.json`` but for what is ternary in it."""
    names: dict[str, str]
    """Stock part of a tensor's name by ours."""
    epsilon: float | None
    """Epsilon of the norms in all ternary linear layers; None where these have none."""

    def plain_config(self, dtype: str) -> dict[str, Any]:
        """``config.json`` of floats of type ``dtype``."""
        return {**self.config, "architectures": [self.architecture], "dtype": dtype}

    def place(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """``tensors`` (by our names, float32 and packed) under the stock names."""
        placed: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            for ours, stock in self.names.items():
                name = name.replace(ours, stock)
            placed[name] = tensor
        if self.epsilon is not None:
            placed.update(_idle_norms(placed, self.epsilon))
        return placed


def layout_of(student: Student) -> Layout:
    """How ``student`` is exported."""
    model, subln = student.model, has_subln(student.model)
    if subln and fits_bitnet(model):
        return Layout(
            architecture="BitNetForCausalLM",
            config=_bitnet_config(model.config),
            names=BITNET_NAMES,
            epsilon=None,
        )
    return Layout(
        architecture=type(model).__name__,
        config=json.loads((student.folder / CONFIG).read_text(encoding="utf-8")),
        names=DENSE_NAMES,
        epsilon=model.config.rms_norm_eps if subln else None,
    )


def _bitnet_config(config: PreTrainedConfig) -> dict[str, Any]:
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
    return stock.to_dict()


def _idle_norms(placed: dict[str, Tensor], epsilon: float) -> dict[str, Tensor]:
    """Tensors with which a norm before linear layers and the norms in them are one norm.

    The first, of mean square v, is to give ``g x / sqrt(v + e)``. Its gain in the file is not g but
    a power of two c. The norm in the linear layer then reads something whose mean square is below
    c^2, adds e, in which that is lost, and so divides by the constant sqrt(e). Its gain in the file
    is ``g sqrt(e) / c``, which puts both constants right. With c = 1, a norm of a norm, activations
    would be off by e / v, which is much where they are small.
    """
    small = 2.0 ** (math.floor(math.log2(epsilon) / 2) - _LOST_BITS)
    idle: dict[str, Tensor] = {}
    for name, gain_D in placed.items():
        layer, _, norm = name.removesuffix(".weight").rpartition(".")
        for linear in NORMED.get(norm, ()):
            idle[name] = torch.full_like(gain_D, small)
            inner_D = gain_D.double() * (math.sqrt(epsilon) / small)
            idle[f"{layer}.{linear}.rms_norm.weight"] = inner_D.float()
    return idle
