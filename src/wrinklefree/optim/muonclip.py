"""MuonClip: Muon, and attention logits kept under a threshold (Kimi K2, arXiv 2507.20534).

After each step, head h whose largest logit S_h exceeded tau shrinks its queries by
``gamma_h = tau / S_h``. The logit is linear in the query, so this is exact for the weights on which
S_h was measured; the step just taken is not yet in it. What is scaled depends on the layer:

- normalised queries (``q_norm``, Qwen3): scaling the projection would do nothing, so the gain of
  the norm is scaled, which all heads share: by the smallest gamma;
- a dense projection: the rows (and biases) of head h. The key projection is left alone, because
  heads of a group share it and innocent heads would be clipped;
- a ternary projection (BitLinear) with scales for heads, rows or groups of a row: likewise, for
  what shares a scale is scaled together and keeps its codes. Exact at any quantization strength;
- a ternary projection with one scale: the mean |W| of all heads is in it, so the codes of all
  change with the rows of one. Rows of head h shrink until what is left of it, measured through the
  quantizer, is gamma_h. Other heads may move by at most a third in one call, or the shrinking stops
  earlier and goes on in the next one. (Scaling the whole tensor would be exact for head h and scale
  all others as well, whenever one is over the threshold: innocent heads die.)

Shapes: H query heads, D their size, N inputs, O = H D.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.optim.attention_logits import AttentionLogitRecorder
from wrinklefree.optim.combined import CombinedOptimizer, Maximum
from wrinklefree.optim.muon import Muon, muon_with_adamw
from wrinklefree.optim.settings import MuonClipSettings
from wrinklefree.quant.bitlinear import BitLinear

LARGEST_INNOCENT_CHANGE = 1 / 3
_ROUNDS = 12
_SMALLEST = 1e-6


@dataclass(frozen=True)
class QkClipStats:
    """What the last clip saw and did."""

    max_logit: float
    """Largest over layers and heads, before clipping."""
    clipped_heads: int
    """Heads over the threshold, over all layers."""
    innocent_change: float
    """Largest relative change of what a head under the threshold projects with."""


class QkClip:
    """Measures attention logits of ``model`` and clips them when called.

    Parameters
    ----------
    model : from now on recorded, see
        :class:`~wrinklefree.optim.attention_logits.AttentionLogitRecorder`.
    threshold : tau, in units of the logits (after scaling by 1/sqrt(D)).

    Raises
    ------
    UserError : the model has no queries that can be shrunk by themselves.
    """

    def __init__(self, model: PreTrainedModel, threshold: float) -> None:
        self._recorder = AttentionLogitRecorder(model)
        for attention in self._recorder.attentions:
            _require_queries(attention)
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
        changes = [0.0]
        for attention, maximum_H in zip(self._recorder.attentions, maxima, strict=True):
            if bool((maximum_H > self._threshold).any()):
                over_H = maximum_H > self._threshold
                gamma_H = torch.where(over_H, self._threshold / maximum_H, 1.0)
                changes.append(shrink_queries(attention, gamma_H))
        self._recorder.reset()
        all_maxima = torch.stack(maxima)
        self.last = QkClipStats(
            max_logit=all_maxima.max().item(),
            clipped_heads=int((all_maxima > self._threshold).sum()),
            innocent_change=max(changes),
        )

    def forget(self) -> None:
        """Start recording anew."""
        self._recorder.reset()

    def combine(self, maximum: Maximum) -> None:
        """Take in what was recorded in other processes."""
        self._recorder.combine(maximum)

    def metrics(self) -> dict[str, float]:
        """``train/qk_max_logit`` (before clipping), ``_clipped_heads``, ``_innocent_change``."""
        assert self.last is not None
        return {
            "train/qk_max_logit": self.last.max_logit,
            "train/qk_clipped_heads": float(self.last.clipped_heads),
            "train/qk_innocent_change": self.last.innocent_change,
        }


def _require_queries(attention: nn.Module) -> None:
    """Raise a UserError unless ``shrink_queries`` shrinks what the queries of ``attention`` are."""
    norm = getattr(attention, "q_norm", None)
    if norm is None and not hasattr(attention, "q_proj"):
        raise UserError(
            f"optimizer.name muonclip: {type(attention).__name__} has no q_proj whose heads could"
            " be clipped (its projections are fused); take muon, or a model with separate ones"
        )
    if norm is not None and not norm.weight.is_meta:
        nothing = {"weight": torch.zeros_like(norm.weight)}
        if torch.func.functional_call(norm, nothing, torch.ones_like(norm.weight)).any():
            raise UserError(
                f"optimizer.name muonclip: the gain of {type(norm).__name__} is not a factor of the"
                " queries (1 + weight), so that they can't be clipped by it; take muon"
            )


@torch.no_grad()
def shrink_queries(attention: nn.Module, gamma_H: Tensor) -> float:
    """Scale the queries of head h by ``gamma_H[h]`` (module docstring), in place.

    Returns
    -------
    The largest relative change of a head whose gamma is 1: 0 where the clip touches no other head.
    """
    norm = getattr(attention, "q_norm", None)
    if norm is not None:
        smallest = gamma_H.min()
        norm.weight.mul_(smallest)
        return (1 - smallest).item() if bool((gamma_H == 1).any()) else 0.0
    projection = attention.get_submodule("q_proj")
    if (
        isinstance(projection, BitLinear)
        and projection.granularity == "tensor"
        and projection.quantization_lambda
    ):
        return _shrink_until(projection, gamma_H)
    shared = getattr(projection, "granularity", "") == "tensor"  # one scale, not yet in use
    for name, parameter in projection.named_parameters(recurse=False):
        if not (shared and name == "alpha"):
            _scale_rows(parameter, gamma_H)
    return 0.0


def _shrink_until(projection: BitLinear, gamma_H: Tensor) -> float:
    """Shrink rows of heads until each projects with ``gamma_H`` times what it did before.

    How much that is: the norm of the weights that the forward pass sees. What is left falls faster
    than the rows do, since their codes turn to zero: a round takes the root of what is missing.
    """
    heads, weight = len(gamma_H), projection.weight
    before_HDN = _seen_by_forward(projection, heads)
    norm_H = before_HDN.norm(dim=(1, 2)).clamp(min=_SMALLEST)
    innocent_H, left_H = gamma_H == 1, torch.ones_like(gamma_H)
    change, power = 0.0, 0.5
    for _ in range(_ROUNDS):
        missing_H = torch.where(innocent_H, 1.0, gamma_H / left_H).clamp(max=1.0)
        if bool((missing_H > 0.999).all()):
            break
        held = weight.clone()
        _scale_rows(weight, missing_H**power)
        now_HDN = _seen_by_forward(projection, heads)
        moved_H = (now_HDN - before_HDN).norm(dim=(1, 2)) / norm_H
        moved = moved_H.where(innocent_H, 0.0).max().item()
        if moved > LARGEST_INNOCENT_CHANGE:
            weight.copy_(held)
            power /= 2
        else:
            change = moved
            left_H = (now_HDN.norm(dim=(1, 2)) / norm_H).clamp(min=_SMALLEST)
    if projection.bias is not None:
        _scale_rows(projection.bias, left_H.where(~innocent_H, 1.0))
    return change


def _seen_by_forward(projection: BitLinear, heads: int) -> Tensor:
    """The weights of each head as the forward pass takes them, [H, D, N]."""
    weight_ON = projection.weight
    codes_ON, scale = projection.ternary_codes()
    seen_ON = torch.lerp(weight_ON, codes_ON * scale, projection.quantization_lambda)
    return seen_ON.unflatten(0, (heads, -1))


def _scale_rows(parameter: Tensor, factor_H: Tensor) -> None:
    """Scale a weight, bias or scales in place; what belongs to a head is consecutive."""
    parameter.unflatten(0, (len(factor_H), -1)).mul_(factor_H.view(-1, *[1] * parameter.ndim))


def build_muonclip(model: PreTrainedModel, settings: MuonClipSettings) -> CombinedOptimizer:
    """Muon without Nesterov for hidden matrices, AdamW for the rest, and QK-clip."""
    clip = QkClip(model, settings.qk_clip_threshold)
    return muon_with_adamw(Muon, model, settings, clip, nesterov=False)
