"""MuonClip: Muon, and attention logits kept under a threshold (Kimi K2, arXiv 2507.20534).

After each step, head h whose largest logit S_h exceeded tau shrinks its queries by
``gamma_h = tau / S_h``. The logit is linear in the query, so this is exact for the weights on which
S_h was measured; the step just taken is not yet in it. What is scaled depends on the layer:

- normalised queries (``q_norm``, Qwen3): scaling the projection would do nothing, so the gain of
  the norm is scaled, which all heads share: by the smallest gamma;
- a dense projection: the rows (and biases) of head h. The key projection is left alone, because
  heads of a group share it and innocent heads would be clipped;
- a ternary projection (BitLinear): its scale is the mean |W| of the whole tensor, so scaling some
  rows changes the codes of all. Scaling all of it by the smallest gamma keeps every code and scales
  the output exactly, at any quantization strength.

Shapes: H query heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from wrinklefree.optim.attention_logits import AttentionLogitRecorder
from wrinklefree.optim.muon import muon_with_adamw
from wrinklefree.optim.settings import MuonClipSettings
from wrinklefree.quant.bitlinear import BitLinear


@dataclass(frozen=True)
class QkClipStats:
    """What the last clip saw and did."""

    max_logit: float
    """Largest over layers and heads, before clipping."""
    clipped_heads: int
    """Heads over the threshold, over all layers."""


class QkClip:
    """Measures attention logits of ``model`` and clips them when called.

    Parameters
    ----------
    model : from now on recorded, see
        :class:`~wrinklefree.optim.attention_logits.AttentionLogitRecorder`.
    threshold : tau, in units of the logits (after scaling by 1/sqrt(D)).
    """

    def __init__(self, model: PreTrainedModel, threshold: float) -> None:
        self._recorder = AttentionLogitRecorder(model)
        self._threshold = threshold
        self.last: QkClipStats | None = None
        """What the latest call did."""

    @torch.no_grad()
    def __call__(self) -> None:
        """Clip by what was recorded since the last call, and start recording anew.

        Raises
        ------
        RuntimeError : nothing was recorded.
        """
        maxima = self._recorder.maxima_H()
        for attention, maximum_H in zip(self._recorder.attentions, maxima, strict=True):
            if bool((maximum_H > self._threshold).any()):
                over_H = maximum_H > self._threshold
                shrink_queries(attention, torch.where(over_H, self._threshold / maximum_H, 1.0))
        self._recorder.reset()
        all_maxima = torch.stack(maxima)
        self.last = QkClipStats(
            max_logit=all_maxima.max().item(),
            clipped_heads=int((all_maxima > self._threshold).sum()),
        )

    def metrics(self) -> dict[str, float]:
        """``train/qk_max_logit`` before clipping, and ``train/qk_clipped_heads``."""
        assert self.last is not None
        return {
            "train/qk_max_logit": self.last.max_logit,
            "train/qk_clipped_heads": float(self.last.clipped_heads),
        }


@torch.no_grad()
def shrink_queries(attention: nn.Module, gamma_H: Tensor) -> None:
    """Scale the queries of head h by at most ``gamma_H[h]`` (module docstring), in place."""
    norm = getattr(attention, "q_norm", None)
    if norm is not None:
        norm.weight.mul_(gamma_H.min())
        return
    projection = attention.get_submodule("q_proj")
    if isinstance(projection, BitLinear):
        gamma_H = gamma_H.min().expand_as(gamma_H)
    for parameter in projection.parameters(recurse=False):
        # Weight or bias: the rows of a head are consecutive.
        parameter.unflatten(0, (len(gamma_H), -1)).mul_(gamma_H.view(-1, *[1] * parameter.ndim))


def build_muonclip(model: PreTrainedModel, settings: MuonClipSettings) -> Optimizer:
    """Muon without Nesterov for hidden matrices, AdamW for the rest, and QK-clip."""
    clip = QkClip(model, settings.qk_clip_threshold)
    return muon_with_adamw(model, settings, nesterov=False, after_step=clip)
