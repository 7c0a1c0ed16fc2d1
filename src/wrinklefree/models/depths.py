"""Layers that compute some tokens of a row and let the others pass by: mixture of depths.

A router gives every token a score. In training a layer computes the ``capacity`` of a row's tokens
that score highest, and weighs what it adds to them by their scores, from which the router learns
(arXiv 2404.02258, sections 3.3 and 3.4). Who is among the highest depends on later tokens, so in
evaluation a predictor says it of each token alone (section 3.5); it is trained beside the model, on
hidden states that it gives no gradient to.

The paper multiplies by the score as it is. Here the weight is ``2 sigmoid(score)`` and scores begin
near 0, so that a trained layer adds what it added before to the tokens that it computes. Attention
is among the computed tokens of the layer, with the positions and documents that they have.

Shapes: B rows, T tokens of a row, C computed ones, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from wrinklefree.errors import UserError
from wrinklefree.models.layers import decoder_layers

_SCORE_DEVIATION = 0.1
"""Of the first scores: different enough to choose by, and their weights are 0.9 to 1.1."""


class Choice(NamedTuple):
    """What a layer does with each token."""

    weight_BT: Tensor
    """float32: of what the layer adds."""
    logit_BT: Tensor
    """float32: the predictor's, above 0 for a token that it would compute."""
    chosen_BT: Tensor
    """bool: tokens that are computed."""


class TokenChoice(nn.Module):
    """Router and predictor of one layer. Untrained, the predictor has every token computed."""

    def __init__(self, features: int, capacity: float, generator: torch.Generator) -> None:
        super().__init__()
        self.router = nn.Parameter(torch.randn(features, generator=generator))
        with torch.no_grad():
            self.router.mul_(_SCORE_DEVIATION / math.sqrt(features))
        self.predictor = nn.Parameter(torch.zeros(features))
        self.bias = nn.Parameter(torch.ones(1))
        self.capacity = capacity

    def forward(self, hidden_BTD: Tensor) -> Choice:
        """Read the residual stream: each token's direction, for sizes differ a thousandfold."""
        wide = torch.promote_types(hidden_BTD.dtype, torch.float32)
        normal_BTD = F.rms_norm(hidden_BTD.to(wide), hidden_BTD.shape[-1:])
        score_BT = (normal_BTD * self.router).sum(-1)
        logit_BT = (normal_BTD.detach() * self.predictor).sum(-1) + self.bias
        chosen_BT = logit_BT > 0
        if self.training:
            count = math.ceil(self.capacity * score_BT.shape[1])
            highest_BC = score_BT.topk(count).indices
            chosen_BT = torch.zeros_like(chosen_BT).scatter(1, highest_BC, True)
        return Choice(2 * score_BT.sigmoid(), logit_BT, chosen_BT)


class SkippingLayer(GradientCheckpointingLayer):
    """A decoder layer that computes the tokens which its ``choice`` chooses."""

    def __init__(self, layer: nn.Module, choice: TokenChoice) -> None:
        """Takes over the very modules of ``layer``."""
        super().__init__()
        vars(self).update(vars(layer))
        self._compute: Any = type(layer).forward
        self.choice = choice

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """float [B, T, D] to the same shape; arguments as those of transformers' layers.

        Parameters
        ----------
        attention_mask : bool [B, 1, T, T]; None: causal.
        past_key_values : of one text, which it is read into as a whole and then token by token; it
            has keys and values of computed tokens.
        """
        choice: Choice = self.choice(hidden_states)
        rows, length = hidden_states.shape[:2]
        if rows > 1 and past_key_values is not None:
            if length == 1:
                raise UserError(
                    f"{rows} texts go on token by token, and layers that leave tokens out"
                    " (subln.mixture_of_depths) keep the tokens of one: generate one text after the"
                    " other, or with use_cache=False"
                )
            past_key_values = None  # who reads several texts at once goes on with none of them
        cached = past_key_values is not None
        place_BC, real_BC = _places(choice.chosen_BT)
        if not place_BC.shape[1]:
            return hidden_states
        mask = None
        if not cached or length > 1:
            known = attention_mask is None or attention_mask.shape[-1] == length
            assert known, "several tokens can't be read behind a cache"
            mask = _mask_of(attention_mask, place_BC, real_BC)
        assert position_embeddings is not None
        given_BCD = _taken(hidden_states, place_BC)
        output_BCD = self._compute(
            self,
            given_BCD,
            attention_mask=mask,
            position_ids=None if position_ids is None else _taken(position_ids, place_BC),
            past_key_values=past_key_values,
            position_embeddings=tuple(_taken(one, place_BC) for one in position_embeddings),
            **kwargs,
        )
        weight_BC = choice.weight_BT.gather(1, place_BC) * real_BC
        added_BCD = weight_BC[..., None].to(given_BCD.dtype) * (output_BCD - given_BCD)
        return hidden_states.scatter_add(1, place_BC[..., None].expand_as(added_BCD), added_BCD)


def _places(chosen_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Where the chosen tokens of each row are, in order, and which of these are real.

    int64 and bool [B, C]: rows with fewer tokens have others behind them.
    """
    count_B = chosen_BT.sum(1)
    most = int(count_B.max())
    place_BC = (~chosen_BT).byte().argsort(dim=1, stable=True)[:, :most]
    return place_BC, torch.arange(most, device=chosen_BT.device) < count_B[:, None]


def _taken(value_BTX: Tensor, place_BC: Tensor) -> Tensor:
    """Of some tokens, [B, C] and what else ``value_BTX`` has; one row may stand for all."""
    value_BTX = value_BTX.expand(len(place_BC), *value_BTX.shape[1:])
    place = place_BC.view(*place_BC.shape, *[1] * (value_BTX.ndim - 2))
    return value_BTX.take_along_dim(place, 1)


def _mask_of(mask_B1TT: Tensor | None, place_BC: Tensor, real_BC: Tensor) -> Tensor:
    """Who may attend to whom among places, bool [B, 1, C, C]; what isn't real only to itself."""
    query_BC1, key_B1C = place_BC[:, :, None], place_BC[:, None]
    if mask_B1TT is None:
        allowed_BCC = key_B1C <= query_BC1
    else:
        row_B11 = torch.arange(len(place_BC), device=place_BC.device)[:, None, None]
        mask_B1TT = mask_B1TT.expand(len(place_BC), *mask_B1TT.shape[1:])
        allowed_BCC = mask_B1TT[row_B11, 0, query_BC1, key_B1C]
    return ((allowed_BCC & real_BC[:, None]) | (query_BC1 == key_B1C))[:, None]


def mix_depths(model: PreTrainedModel, every: int, capacity: float, seed: int = 0) -> None:
    """Let each ``every``-th layer of ``model`` compute a ``capacity`` of the tokens, in place; the
    routers' first weights are drawn with ``seed``.

    Raises
    ------
    UserError : the architecture is none whose layers are known, or has fewer layers.
    """
    layers, container = decoder_layers(model), model.get_decoder().get_submodule("layers")
    if every > len(layers):
        raise UserError(
            f"subln.mixture_of_depths.every is {every} and the model has {len(layers)} layers, so"
            " that none would leave tokens out; lower it"
        )
    for index in range(every - 1, len(layers), every):
        layer = layers[index]
        if not isinstance(layer, LlamaDecoderLayer | Qwen2DecoderLayer | Qwen3DecoderLayer):
            raise UserError(
                f"layers of {model.config.model_type} can't leave tokens out, only those of llama,"
                " qwen2 and qwen3; leave subln.mixture_of_depths out"
            )
        generator = torch.Generator().manual_seed(seed + index)
        with torch.device("cpu"):
            choice = TokenChoice(model.config.hidden_size, capacity, generator)
        choice.to(model.device).train(layer.training)
        container.add_module(str(index), SkippingLayer(layer, choice))


def skipping_layers(model: PreTrainedModel) -> list[int]:
    """Numbers of the decoder layers that leave tokens out."""
    layers = enumerate(decoder_layers(model))
    return [index for index, layer in layers if isinstance(layer, SkippingLayer)]


def refuse_skipping(model: PreTrainedModel, what: str) -> None:
    """Raise a UserError if layers of ``model`` leave tokens out: ``what`` can't be."""
    if skipping_layers(model):
        raise UserError(f"some layers leave tokens out (subln.mixture_of_depths): {what}")


@contextmanager
def captured_choices(model: PreTrainedModel) -> Iterator[list[Choice]]:
    """What each layer that leaves tokens out does, after the model ran inside of the context.

    A layer that runs again after it, as activation checkpointing makes it, is not read again.
    """
    choices: list[Choice] = []
    with ExitStack() as stack:
        for index in skipping_layers(model):

            def keep(module: nn.Module, given: Any, output: Choice) -> None:
                choices.append(output)

            choice = decoder_layers(model)[index].get_submodule("choice")
            stack.callback(choice.register_forward_hook(keep).remove)
        yield choices
