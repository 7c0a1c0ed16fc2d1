"""Distillation of hidden states: what stands between the decoder layers.

Shapes: B rows, T tokens of a row, N tokens of any rows, D hidden size of the teacher, E that of the
student where it is another.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from wrinklefree.distill.settings import HiddenDistance
from wrinklefree.models.states import relative_error

_SMALLEST = 1e-12
_RIDGE = 1e-9


def hidden_distance(teacher_BTD: Tensor, student_BTD: Tensor, distance: HiddenDistance) -> Tensor:
    """How far every token of the student is from the teacher's, float32 or larger [B, T].

    Both distances are relative to the token, so that the few with massive activations count as any
    other. ``normalized_mse``: squared error over the teacher's square. ``cosine``: 1 less the
    cosine, which does not see lengths.
    """
    dtype = torch.promote_types(student_BTD.dtype, torch.float32)
    return DISTANCES[distance](teacher_BTD.to(dtype), student_BTD.to(dtype))


def fitted_map(teacher_ND: Tensor, student_NE: Tensor, weight_N: Tensor) -> Tensor:
    """The linear map [E, D] from the student's hidden states to the teacher's, without a gradient.

    It minimises the weighted sum of squared errors over the teacher's squares, in float64. Of what
    is left of ``normalized_mse`` after the best map, the gradient is that with the map held fixed
    (envelope theorem): nothing has to be learnt or kept for it.

    Parameters
    ----------
    weight_N : how much each token counts; fewer than E tokens of weight fit perfectly, and teach
        nothing.
    """
    teacher_ND, student_NE = teacher_ND.detach().double(), student_NE.detach().double()
    square_N = teacher_ND.square().sum(-1).clamp(min=_SMALLEST)
    weighted_EN = (student_NE * (weight_N.double() / square_N)[:, None]).T
    gram_EE = weighted_EN @ student_NE
    gram_EE.diagonal().mul_(1 + _RIDGE).add_(_SMALLEST)  # for features that are others' or nothing
    return torch.linalg.solve(gram_EE, weighted_EN @ teacher_ND)


def _cosine(teacher_BTD: Tensor, student_BTD: Tensor) -> Tensor:
    return 1 - functional.cosine_similarity(teacher_BTD, student_BTD, dim=-1, eps=_SMALLEST)


DISTANCES: dict[HiddenDistance, Callable[[Tensor, Tensor], Tensor]] = {
    "normalized_mse": relative_error,
    "cosine": _cosine,
}
