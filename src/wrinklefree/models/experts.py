"""Feed-forward networks that are chosen for every token: mixtures of experts, as in Qwen3-MoE.

A router gives each token a distribution over the experts; the likeliest few read the token, and
their outputs are added by its probabilities. transformers keeps the matrices of all experts of a
layer in two parameters; here these are the weights of two layers, which can be made ternary and
get a norm. Routers are never touched.

Every expert is what a dense feed-forward network is: gate, up and down have scales of their own,
and SubLN has gains of its own.

Shapes: B rows, T tokens of a row, M tokens, K experts of a token, E experts, P = M K pairs of them
in the order of experts, D hidden size, F features of an expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from wrinklefree.errors import UserError
from wrinklefree.models.layers import decoder_layers
from wrinklefree.models.saving import gated_product, rms_norm
from wrinklefree.quant.bitlinear_stack import LinearStack
from wrinklefree.quant.routing import Routing

IN_ORDER: dict[str, Any] = {"experts_implementation": "eager"}
"""What transformers' dense experts are to run as: one after the other, which alone adds gradients
in the same order every time. Models without experts take no notice."""


class ExpertNorm(nn.Module):
    """An RMSNorm for each of E parts of the tokens; ``weight`` has their gains, [E, F]."""

    def __init__(self, experts: int, features: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(experts, features))
        self.variance_epsilon = eps

    def forward(self, activation_PF: Tensor, routing: Routing) -> Tensor:
        """float, as its input."""
        one_F = torch.ones_like(self.weight[0])
        normal_PF = rms_norm(activation_PF, one_F, self.variance_epsilon)
        return normal_PF * F.embedding(routing.layer_P, self.weight)


class SublnStack(nn.Module):
    """A stack of linear layers behind an RMSNorm of its input, as ``SublnLinear``."""

    def __init__(self, norm: ExpertNorm, linear: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.linear = linear

    def forward(self, activation_PF: Tensor, routing: Routing) -> Tensor:
        """float [P, F] to [P, D]."""
        return self.linear(self.norm(activation_PF, routing), routing)


class Experts(nn.Module):
    """transformers' experts of one layer, whose parameters are those of two layers here."""

    def __init__(self, experts: Qwen3MoeExperts) -> None:
        """Takes over the very parameters of ``experts``, whose gate is SiLU."""
        super().__init__()
        self.gate_up_proj: nn.Module = LinearStack(experts.get_parameter("gate_up_proj"))
        self.down_proj: nn.Module = LinearStack(experts.get_parameter("down_proj"))
        self.count = len(experts.get_parameter("down_proj"))
        self.train(experts.training)

    def forward(self, hidden_MD: Tensor, expert_MK: Tensor, weight_MK: Tensor) -> Tensor:
        """What the experts make of each token, times their weights: float, as ``hidden_MD``."""
        routing = Routing.of(expert_MK, self.count)
        # Embeddings are indices whose gradients are added up in the same order every time.
        given_PD = F.embedding(routing.token_P, hidden_MD)
        gate_PF, up_PF = self.gate_up_proj(given_PD, routing).chunk(2, -1)
        output_PD = self.down_proj(gated_product(gate_PF, up_PF), routing)
        output_MKD = F.embedding(routing.place_MK, output_PD)
        return (output_MKD * weight_MK[..., None]).sum(1).to(hidden_MD.dtype)


def has_experts(layer: nn.Module) -> bool:
    """Whether a decoder layer has experts in place of one feed-forward network."""
    experts = getattr(getattr(layer, "mlp", None), "experts", None)
    return isinstance(experts, Qwen3MoeExperts | Experts)


def open_experts(layer: nn.Module) -> None:
    """Let the matrices of a decoder layer's experts, if it has any, be layers, in place.

    Raises
    ------
    UserError : their gate is another one than SiLU.
    """
    experts = getattr(getattr(layer, "mlp", None), "experts", None)
    if not isinstance(experts, Qwen3MoeExperts):
        return
    config: Any = experts.config
    if config.hidden_act not in ("silu", "swish"):
        raise UserError(
            f"hidden_act is {config.hidden_act}: experts are made ternary with silu only"
        )
    layer.set_submodule("mlp.experts", Experts(experts))


def layers_with_experts(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers that have experts, in order."""
    return [layer for layer in decoder_layers(model) if has_experts(layer)]


@contextmanager
def captured_routers(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Logits over the experts, [B, T, E] of each router, after the model ran inside of the context.

    Gradients flow through them. A layer that runs again after the context, as activation
    checkpointing makes it, is not read again.
    """
    logits: list[Tensor] = []
    with ExitStack() as stack:
        for layer in layers_with_experts(model):

            def keep(router: nn.Module, arguments: Any, output: tuple[Tensor, ...]) -> None:
                logits.append(output[0])

            def in_rows(mlp: nn.Module, arguments: tuple[Tensor], output: Any) -> None:
                logits[-1] = logits[-1].unflatten(0, arguments[0].shape[:-1])

            mlp = layer.get_submodule("mlp")
            router = mlp.get_submodule("gate")
            stack.callback(router.register_forward_hook(keep).remove)
            stack.callback(mlp.register_forward_hook(in_rows).remove)
        yield logits
