"""What is put into a dense model: ternary linear layers, and norms before two of them (SubLN).

Works on every architecture whose decoder layers have ``self_attn.{q,k,v,o}_proj`` and
``mlp.{gate,up,down}_proj`` or experts: Llama, Qwen2, Qwen3, Qwen3-MoE; and on Bamba, where layers
with a state have ``mamba.{in,out}_proj``. Embeddings, head, norms, routers, and what a state and
its convolution have beside these projections, are never touched.

Shapes: M tokens (any leading dimensions), N input features of a linear layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from wrinklefree.errors import UserError
from wrinklefree.kernels.launch import FLOATS, has_triton
from wrinklefree.kernels.subln_quantize import subln_quantize
from wrinklefree.models.experts import ExpertNorm, SublnStack, has_experts, open_experts
from wrinklefree.models.layers import decoder_layers
from wrinklefree.models.saving import GatedMlp, rms_norm
from wrinklefree.quant.bitlinear import ABSMEAN, BitLinear, TernaryLayer
from wrinklefree.quant.bitlinear_stack import BitLinearStack, LinearStack
from wrinklefree.quant.settings import QuantizerSettings

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
PROJECTIONS_WITH_HEADS = ("q_proj", "k_proj", "v_proj")
"""Whose outputs are attention heads, in order."""
MLP_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
READ_ALONE = ("o_proj", "down_proj", "out_proj")
"""Whose input no other projection reads."""
MIXER_PROJECTIONS = ("in_proj", "out_proj")
_SUPPORTED = "supported are architectures built like Llama, Qwen2, Qwen3, Qwen3-MoE and Bamba"


class SublnLinear(nn.Module):
    """A linear layer behind an RMSNorm of its input (arXiv 2510.13998, section 3.1).

    The norm's arithmetic is that of transformers' BitNet, so that an exported model agrees.
    """

    def __init__(self, norm: LlamaRMSNorm, linear: nn.Linear | BitLinear) -> None:
        super().__init__()
        self.norm = norm
        self.linear = linear

    def forward(self, activation_MN: Tensor) -> Tensor:
        """float [..., N] to float [..., output features]."""
        gain_N, epsilon = self.norm.weight, self.norm.variance_epsilon
        if self._reads_codes_only(activation_MN):
            normed_MN, *codes = subln_quantize(activation_MN, gain_N, epsilon)
            return self.linear(normed_MN, tuple(codes))
        return self.linear(rms_norm(activation_MN, gain_N, epsilon))

    def _reads_codes_only(self, activation_MN: Tensor) -> bool:
        """Whether one kernel may norm and quantize: nobody looks at the values in between."""
        linear = self.linear
        return (
            not torch.compiler.is_compiling()
            and has_triton(activation_MN, *FLOATS)
            and isinstance(linear, BitLinear)
            and linear.is_exact
            and not (linear._forward_pre_hooks or linear._forward_hooks)
        )


def supported_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers in order, found to have the projections that surgery replaces.

    Raises
    ------
    UserError : the architecture is none that surgery knows.
    """
    layers = decoder_layers(model)
    for key in ("rms_norm_eps", "hidden_act"):
        if not hasattr(model.config, key):
            raise UserError(f"{type(model).__name__}: no {key} in config.json; {_SUPPORTED}")
    for layer in layers:
        names = dict(layer.named_modules())
        expected = [f"self_attn.{name}" for name in ATTENTION_PROJECTIONS]
        if "mamba" in names:
            expected = [f"mamba.{name}" for name in MIXER_PROJECTIONS]
        if not has_experts(layer):
            expected += [f"{_feed_forward(layer)}.{name}" for name in MLP_PROJECTIONS]
        if missing := [name for name in expected if name not in names]:
            raise UserError(
                f"{type(model).__name__}: decoder layers lack {missing[0]}; {_SUPPORTED}"
            )
    return layers


def _feed_forward(layer: nn.Module) -> str:
    return "feed_forward" if hasattr(layer, "feed_forward") else "mlp"


def insert_bitlinear(model: PreTrainedModel, quantizer: QuantizerSettings = ABSMEAN) -> None:
    """Turn every linear layer inside the decoder layers into a ``BitLinear``, in place.

    Parameters stay the same objects. Names of parameters do not change; a learned scale adds one
    per layer. The feed-forward part computes the same and saves less. With granularity ``head``
    only ``q_proj``, ``k_proj`` and ``v_proj`` have a scale for each head, other layers have
    granularity ``tensor``. Of experts, gate, up and down of each have scales of their own, and
    names get ``.weight`` appended.

    Raises
    ------
    UserError : a layer's inputs are no whole number of groups.
    """
    without_heads = quantizer
    if quantizer.granularity == "head":
        without_heads = quantizer.model_copy(update={"granularity": "tensor"})
    for layer in supported_layers(model):
        open_experts(layer)
        head_size: Any = getattr(getattr(layer, "self_attn", None), "head_dim", None)
        for name, module in list(layer.named_modules()):
            leaf, made = name.rpartition(".")[2], None
            try:
                if isinstance(module, LinearStack):
                    made = BitLinearStack(module, without_heads, 1 + (leaf == "gate_up_proj"))
                elif isinstance(module, nn.Linear):
                    own = quantizer if leaf in PROJECTIONS_WITH_HEADS else without_heads
                    made = BitLinear.from_linear(module, own, head_size)
                    made.reads_alone = leaf in READ_ALONE
            except ValueError as error:
                raise UserError(f"subln.quantizer: {name} of a decoder layer: {error}") from None
            if made:
                layer.set_submodule(name, made)
        name = _feed_forward(layer)
        if GatedMlp.can_stand_for(mlp := layer.get_submodule(name)):
            layer.set_submodule(name, GatedMlp(mlp))


def entries_by_kind(model: PreTrainedModel) -> dict[str, dict[str, int]]:
    """What of the decoder layers is ``ternary`` and what ``dense``: entries by parameter's name."""
    layers = [module for module in model.modules() if isinstance(module, TernaryLayer)]
    ternary = {id(layer.weight) for layer in layers}
    found: dict[str, dict[str, int]] = {"ternary": {}, "dense": {}}
    for layer in decoder_layers(model):
        for name, parameter in layer.named_parameters():
            of_kind = found["ternary" if id(parameter) in ternary else "dense"]
            of_kind[name] = of_kind.get(name, 0) + parameter.numel()
    return found


def insert_subln(model: PreTrainedModel) -> None:
    """Put an RMSNorm with unit gain on the input of every ``o_proj`` and ``down_proj``, in place.

    Unit gain changes the model's function: see ``models.calibration``. The ``out_proj`` of a mixer
    gets none: the mixer's own norm with gains stands right before it.
    """
    epsilon = model.config.rms_norm_eps
    for layer in supported_layers(model):
        open_experts(layer)
        for name in subln_sites(layer):
            linear: Any = layer.get_submodule(name)
            if isinstance(linear, LinearStack | BitLinearStack):
                norm = ExpertNorm(len(linear.weight), linear.weight.shape[-1], epsilon)
                made = SublnStack(norm, linear)
            else:
                assert isinstance(linear, nn.Linear | BitLinear), "SubLN is already there"
                made = SublnLinear(LlamaRMSNorm(linear.in_features, eps=epsilon), linear)
            made.norm.to(linear.weight.device, linear.weight.dtype)
            layer.set_submodule(name, made)


def subln_sites(layer: nn.Module) -> tuple[str, ...]:
    """Which linear layers of a decoder layer get a norm, in the order in which data meets them."""
    attention = ("self_attn.o_proj",) if hasattr(layer, "self_attn") else ()
    inside = "mlp.experts" if has_experts(layer) else _feed_forward(layer)
    return *attention, f"{inside}.down_proj"


def subln_modules(layer: nn.Module) -> dict[str, SublnLinear | SublnStack]:
    """The SubLN modules of one decoder layer by name, in the order in which data meets them; none
    if it has no SubLN."""
    modules = {name: layer.get_submodule(name) for name in subln_sites(layer)}
    return {
        name: module
        for name, module in modules.items()
        if isinstance(module, SublnLinear | SublnStack)
    }


def has_subln(model: PreTrainedModel) -> bool:
    """Whether the decoder layers have the norms of SubLN."""
    return bool(subln_modules(decoder_layers(model)[0]))
