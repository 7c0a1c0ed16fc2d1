"""Distillation of attention relations at one layer (BitDistill, arXiv 2510.13998, section 3.3).

As in MiniLMv2 (2012.15828), a relation is a row of ``softmax(A Aᵀ / temperature)``, where A are the
queries, keys or values of a layer, cut into relation heads and L2-normalised. It is not the matrix
of attention probabilities, so attention itself runs in whatever fused implementation the model has;
the projections are read off its arguments: after qk-norm and rotary embedding, and before keys and
values are repeated for grouped queries. Teacher and student may differ in their number of attention
heads, as relation heads are counted anew.

Shapes: B rows, T tokens of a row, H attention heads, K key/value heads, D head size, R relation
heads, E relation head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from wrinklefree.distill.divergence import kl_divergence
from wrinklefree.errors import UserError


@dataclass(frozen=True)
class Projections:
    """What one layer's attention is computed from; gradients flow through it."""

    query_BHTD: Tensor
    key_BKTD: Tensor
    value_BKTD: Tensor

    def rows(self, start: int, stop: int, *, batch: int) -> Projections:
        """Tokens ``start`` to ``stop`` of the first ``batch`` rows."""
        return Projections(
            self.query_BHTD[:batch, :, start:stop],
            self.key_BKTD[:batch, :, start:stop],
            self.value_BKTD[:batch, :, start:stop],
        )


class Capture:
    """Holds the projections of the last forward pass of one layer."""

    def __init__(self) -> None:
        self._projections: Projections | None = None

    @property
    def projections(self) -> Projections:
        """The captured projections; the model must have run inside the context."""
        assert self._projections is not None, "the model did not run while being captured"
        return self._projections

    def store(self, projections: Projections) -> None:
        """Keep these and drop the earlier ones."""
        self._projections = projections


def relation_layer(model: PreTrainedModel, fraction: float) -> int:
    """Index of the layer at a fraction of the depth: 0.8 of 28 layers is 22; 1 is the last one."""
    layers = model.config.num_hidden_layers
    return min(round(fraction * layers), layers - 1)


@contextmanager
def capture_projections(model: PreTrainedModel, layer: int) -> Iterator[Capture]:
    """Read the queries, keys and values of a layer while the model runs inside the context.

    The attention function that the model's configuration names is wrapped for as long, in the table
    where transformers looks it up; other models and layers pass through it untouched.
    """
    attention = model.get_decoder().get_submodule(f"layers.{layer}.self_attn")
    name = model.config._attn_implementation
    if name not in ALL_ATTENTION_FUNCTIONS:
        raise UserError(
            f"relations can't be read from attention implementation {name}, which is no fused one;"
            " load the model with attn_implementation sdpa"
        )
    inner: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[name]
    capture = Capture()

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **rest: Any):
        if module is attention:
            capture.store(Projections(query, key, value))
        return inner(module, query, key, value, *args, **rest)

    ALL_ATTENTION_FUNCTIONS[name] = attend
    try:
        yield capture
    finally:
        ALL_ATTENTION_FUNCTIONS[name] = inner


def relation_mask(piece_BT: Tensor, *, causal: bool) -> Tensor:
    """Which tokens a relation compares: bool [B, T, T], the query's row first.

    Tokens of the same document piece (-1 is padding), with ``causal`` only the query's own past;
    always the token itself.
    """
    query_BT1, key_B1T = piece_BT[:, :, None], piece_BT[:, None, :]
    mask_BTT = (query_BT1 == key_B1T) & (query_BT1 >= 0)
    mask_BTT = mask_BTT.tril() if causal else mask_BTT
    return mask_BTT | torch.eye(piece_BT.shape[1], dtype=torch.bool, device=piece_BT.device)


def relations_divergence(
    teacher: Projections, student: Projections, mask_BTT: Tensor, *, heads: int, temperature: float
) -> Tensor:
    """KL(teacher || student) of every token's relations, nats [B, T].

    The mean over relation heads, the sum over queries, keys and values. In at least float32.
    Nothing is divided by the number of layers or tokens: the caller averages over tokens.
    """
    pairs = (
        (teacher.query_BHTD, student.query_BHTD),
        (teacher.key_BKTD, student.key_BKTD),
        (teacher.value_BKTD, student.value_BKTD),
    )
    divergence_BT = torch.zeros((), device=mask_BTT.device)
    for teacher_BHTD, student_BHTD in pairs:
        teacher_log = _log_relations(teacher_BHTD, mask_BTT, heads, temperature)
        student_log = _log_relations(student_BHTD, mask_BTT, heads, temperature)
        divergence_BT = divergence_BT + kl_divergence(teacher_log, student_log).mean(1)
    return divergence_BT


def _log_relations(x_BHTD: Tensor, mask_BTT: Tensor, heads: int, temperature: float) -> Tensor:
    """Log of ``softmax(A Aᵀ / temperature)`` over the allowed tokens, [B, R, T, T]."""
    batch, attention_heads, length, size = x_BHTD.shape
    if attention_heads * size % heads:
        raise UserError(
            f"distill relations.heads is {heads}, which does not divide a projection of"
            f" {attention_heads} heads of size {size}; choose a divisor of {attention_heads * size}"
        )
    x_BTRE = x_BHTD.transpose(1, 2).reshape(batch, length, heads, -1)
    x_BRTE = x_BTRE.transpose(1, 2).to(torch.promote_types(x_BHTD.dtype, torch.float32))
    a_BRTE = functional.normalize(x_BRTE, dim=-1)
    with torch.autocast(a_BRTE.device.type, enabled=False):
        scores_BRTT = a_BRTE @ a_BRTE.transpose(-1, -2) / temperature
    return scores_BRTT.masked_fill(~mask_BTT[:, None], float("-inf")).log_softmax(-1)
