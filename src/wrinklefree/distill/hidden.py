"""Distillation of hidden states: what stands between the decoder layers.

Shapes: B rows, T tokens of a row, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from wrinklefree.distill.settings import HiddenDistance

_SMALLEST = 1e-12


def hidden_distance(teacher_BTD: Tensor, student_BTD: Tensor, distance: HiddenDistance) -> Tensor:
    """How far every token of the student is from the teacher's, float32 or larger [B, T].

    Both distances are relative to the token, so that the few with massive activations count as any
    other. ``normalized_mse``: squared error over the teacher's square. ``cosine``: 1 less the
    cosine, which does not see lengths.
    """
    dtype = torch.promote_types(student_BTD.dtype, torch.float32)
    return DISTANCES[distance](teacher_BTD.to(dtype), student_BTD.to(dtype))


def _normalized_mse(teacher_BTD: Tensor, student_BTD: Tensor) -> Tensor:
    square_BT = teacher_BTD.square().sum(-1).clamp(min=_SMALLEST)
    return (student_BTD - teacher_BTD).square().sum(-1) / square_BT


def _cosine(teacher_BTD: Tensor, student_BTD: Tensor) -> Tensor:
    return 1 - functional.cosine_similarity(teacher_BTD, student_BTD, dim=-1, eps=_SMALLEST)


DISTANCES: dict[HiddenDistance, Callable[[Tensor, Tensor], Tensor]] = {
    "normalized_mse": _normalized_mse,
    "cosine": _cosine,
}
