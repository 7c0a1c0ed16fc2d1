"""Parts of a ternary decoder layer that save what they read for the backward pass, and no more.

What follows from it elementwise is cheap to compute again. Autograd would save every step: of an
RMSNorm two tensors besides its input, of ``silu(gate) * up`` one besides gate and up. Values are
those of the plain formulas to the bit.

Shapes: M tokens (any leading dimensions), N features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeMLP


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value_MN: Tensor, gain_N: Tensor, epsilon: float) -> Tensor:
        normed_MN, factor_M1 = _normed(value_MN, gain_N, epsilon)
        ctx.save_for_backward(value_MN, factor_M1, gain_N)
        return normed_MN

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        value_MN, factor_M1, gain_N = ctx.saved_tensors
        normal_MN = value_MN.float() * factor_M1
        to_value, to_gain = None, None
        if ctx.needs_input_grad[1]:
            product_MN = gradients[0] * normal_MN
            to_gain = product_MN.flatten(0, -2).sum(0).to(gain_N.dtype)
        if ctx.needs_input_grad[0]:
            scaled_MN = (gradients[0] * gain_N).float()
            along_M1 = (scaled_MN * normal_MN).mean(-1, keepdim=True)
            scaled_MN.sub_(normal_MN.mul_(along_M1)).mul_(factor_M1)
            to_value = scaled_MN.to(value_MN.dtype)
        return to_value, to_gain, None


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_MN: Tensor, up_MN: Tensor) -> Tensor:
        ctx.save_for_backward(gate_MN, up_MN)
        return F.silu(gate_MN).mul_(up_MN)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate_MN, up_MN = ctx.saved_tensors
        to_gate = torch.ops.aten.silu_backward(gradients[0] * up_MN, gate_MN)
        return to_gate, F.silu(gate_MN).mul_(gradients[0])


def _normed(value_MN: Tensor, gain_N: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    wide_MN = value_MN.float()
    factor_M1 = torch.rsqrt(wide_MN.pow(2).mean(-1, keepdim=True) + epsilon)
    normal_MN = (wide_MN * factor_M1).to(value_MN.dtype)
    if normal_MN.dtype != gain_N.dtype:
        return gain_N * normal_MN, factor_M1
    return normal_MN.mul_(gain_N), factor_M1


def rms_norm(value_MN: Tensor, gain_N: Tensor, epsilon: float) -> Tensor:
    """``gain x / sqrt(mean x² + epsilon)``, in float32 inside as in transformers' Llama."""
    if not torch.is_grad_enabled():  # a token that is generated has no time for autograd
        return _normed(value_MN, gain_N, epsilon)[0]
    normalised: Any = _RmsNorm.apply(value_MN, gain_N, epsilon)
    return normalised


def gated_product(gate_MN: Tensor, up_MN: Tensor) -> Tensor:
    """``silu(gate) * up``."""
    if not torch.is_grad_enabled():
        return F.silu(gate_MN).mul_(up_MN)
    product: Any = _GatedProduct.apply(gate_MN, up_MN)
    return product


class GatedMlp(nn.Module):
    """The feed-forward part of a Llama or Qwen layer, under the names that it has there."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def __init__(self, mlp: nn.Module) -> None:
        """Takes over the very modules of ``mlp``."""
        super().__init__()
        for name, module in mlp.named_children():
            self.add_module(name, module)
        self.training = mlp.training

    @staticmethod
    def can_stand_for(mlp: nn.Module) -> bool:
        """Whether ``mlp`` computes what this class does."""
        known = isinstance(mlp, LlamaMLP | Qwen2MLP | Qwen3MLP | Qwen3MoeMLP)
        return known and mlp.config.hidden_act in ("silu", "swish")

    def forward(self, activation_MN: Tensor) -> Tensor:
        """float [..., N] to the same shape."""
        gate, up = self.gate_proj(activation_MN), self.up_proj(activation_MN)
        return self.down_proj(gated_product(gate, up))
