"""Mixers with a state in place of attention: Mamba-2 (arXiv 2405.21060), as in Bamba.

A mixer reads a row from left to right: a convolution over a few tokens, then a state to which each
token adds and that decays. In a row of several documents both would carry the end of one into the
next. transformers keeps documents apart with its CUDA kernels only, so here each is a row of its
own between the projections, which are of single tokens and stay as they are packed.

Shapes: B rows, T tokens of a row, M = B T tokens, N documents, L tokens of the longest, F features,
I features of a mixer, C channels of its convolution, H its heads, S numbers of its states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.bamba.modeling_bamba import (
    BambaMixer,
    causal_conv1d_fn,
    mamba2_chunk_scan,
)

from wrinklefree.errors import UserError
from wrinklefree.models.layers import STATES, decoder_layers, has_states

_STEP_BOUNDS = (0.001, 0.1)


@dataclass(frozen=True)
class Apart:
    """Packed rows, and the same tokens with one document in each row.

    Behind its end such a row goes on with whatever text comes next: what reads from left to right
    never sees it, and nobody takes it back.
    """

    token_NL: Tensor
    """int64: which of the M tokens stands there."""
    place_BT: Tensor
    """int64: where each token stands, among N L places."""

    @classmethod
    def of(cls, starts_BT: Tensor) -> Apart:
        """``starts_BT``, bool, marks the first token of every document, so of every row."""
        start_N = starts_BT.flatten().nonzero().squeeze(1)
        end = starts_BT.new_tensor([starts_BT.numel()], dtype=torch.int64)
        longest = int(start_N.diff(append=end).max())
        index_L, index_M = (torch.arange(n, device=end.device) for n in (longest, int(end)))
        document_M = starts_BT.flatten().cumsum(0) - 1
        place_M = document_M * longest + index_M - start_N[document_M]
        token_NL = (start_N[:, None] + index_L).clamp(max=int(end) - 1)
        return cls(token_NL, place_M.view_as(starts_BT))

    def apart(self, packed_BTF: Tensor) -> Tensor:
        """One document in each row, [N, L, F]."""
        return F.embedding(self.token_NL, packed_BTF.flatten(0, 1))

    def together(self, apart_NLF: Tensor) -> Tensor:
        """Packed as they were, [B, T, F]."""
        return F.embedding(self.place_BT, apart_NLF.flatten(0, 1))


class DocumentMixer(BambaMixer):
    """transformers' mixer, which begins anew with every document of a row."""

    def __init__(self, mixer: BambaMixer) -> None:
        """Takes over the very modules and parameters of ``mixer``."""
        nn.Module.__init__(self)
        vars(self).update(vars(mixer))

    def forward(
        self,
        hidden_states: Tensor,
        cache_params: Any = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """float [B, T, D] to the same shape.

        Parameters
        ----------
        cache_params : holds the state of a text that is written token by token, as transformers
            has it; the row is one document then.
        attention_mask : bool [B, 1, T, T]: a document begins where a token does not see the one
            before it. None: every row is one document.
        """
        if cache_params is not None or (attention_mask is not None and attention_mask.ndim != 4):
            return super().forward(hidden_states, cache_params, attention_mask, **kwargs)
        starts_BT = torch.ones(hidden_states.shape[:2], dtype=torch.bool, device=self.D.device)
        starts_BT[:, 1:] = False
        if attention_mask is not None:
            starts_BT[:, 1:] = ~attention_mask[:, 0].diagonal(-1, 1, 2)
        rows = Apart.of(starts_BT)
        sizes = [self.intermediate_size, self.conv_dim, self.num_heads]
        gate_BTI, joint_BTC, step_BTH = self.in_proj(hidden_states).split(sizes, -1)
        read_NLI = self._read(rows.apart(joint_BTC), rows.apart(step_BTH))
        normed_BTI = self.norm(rows.together(read_NLI), gate_BTI)
        return self.out_proj(normed_BTI.to(hidden_states.dtype))

    def _read(self, joint_NLC: Tensor, step_NLH: Tensor) -> Tensor:
        """What convolution and state make of rows of one document each, [N, L, I].

        The state is summed up in float32 whatever products are computed in.
        """
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        joint_NLC = causal_conv1d_fn(
            joint_NLC.mT.contiguous(), weight, bias, activation=self.activation
        ).mT
        groups: Any = (self.n_groups, self.ssm_state_size)
        heads: Any = (self.num_heads, self.head_dim)
        sizes = [self.intermediate_size, math.prod(groups), math.prod(groups)]
        value_NLI, key_NLS, query_NLS = joint_NLC.split(sizes, -1)
        with torch.autocast(joint_NLC.device.type, enabled=False):
            read: Any = mamba2_chunk_scan(
                value_NLI.float().unflatten(-1, heads),
                step_NLH.float(),
                -torch.exp(self.A_log.float()),
                key_NLS.float().unflatten(-1, groups),
                query_NLS.float().unflatten(-1, groups),
                chunk_size=self.chunk_size,
                D=self.D.float(),
                dt_bias=self.dt_bias.float(),
                dt_softplus=True,
                dt_limit=self.time_step_limit,
            )
        return read.flatten(2)


def reset_states(model: PreTrainedModel) -> PreTrainedModel:
    """``model``, whose mixers, if it has any, begin anew with every document from now on.

    Names and values of parameters stay.

    Raises
    ------
    UserError : it has a state that is none of Bamba's.
    """
    if has_states(model.config):
        kinds: Any = model.config.layer_types
        for layer, kind in zip(decoder_layers(model), kinds, strict=True):
            mixer = getattr(layer, "mamba", None)
            if isinstance(mixer, BambaMixer):
                layer.add_module("mamba", DocumentMixer(mixer))
            elif kind in STATES:
                raise UserError(
                    f"{type(model).__name__} has layers with a state, which would carry a document"
                    " into the next one of its row; of such models only those built like Bamba can"
                    " be read"
                )
    return model


@torch.no_grad()
def start_steps(model: PreTrainedModel) -> None:
    """Draw how fast each head of untrained mixers forgets, in place.

    Steps are log-uniform from 0.001 to 0.1, as the paper's code has them, so that some heads
    remember hundreds of tokens. transformers' ones make every state forget within a few.
    """
    low, high = map(math.log, _STEP_BOUNDS)
    for module in model.modules():
        if isinstance(module, BambaMixer):
            step_H = torch.empty_like(module.dt_bias).uniform_(low, high).exp()
            module.dt_bias.copy_(step_H + torch.log(-torch.expm1(-step_H)))


def refuse_states(model: PreTrainedModel, what: str) -> None:
    """Raise a UserError if ``model`` has states: ``what`` can't be, and what to change."""
    if has_states(model.config):
        raise UserError(f"{model.config.model_type} has layers with a state: {what}")
