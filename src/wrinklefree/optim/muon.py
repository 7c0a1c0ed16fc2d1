"""Muon: momentum orthogonalized by Newton-Schulz, for hidden matrices (Jordan et al. 2024).

Shapes: R rows, C columns of a weight; K matrices (none, or one leading dimension).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.optim.adamw import beside_adamw
from wrinklefree.optim.combined import AfterStep, CombinedOptimizer
from wrinklefree.optim.contract import Group, Part, PerParameterOptimizer
from wrinklefree.optim.newton_schulz import Coefficients, compute_dtype, orthogonalize
from wrinklefree.optim.partition import matrices
from wrinklefree.optim.settings import MuonBase, MuonSettings

Scale = Literal["original", "match_rms"]
_SINGULAR_VALUES: dict[Coefficients, float] = {"classic": 0.9, "polar_express": 1.0}
"""The root of their mean square behind the polynomials."""


def scale_factor(rows: int, columns: int, scale: Scale) -> float:
    """What the orthogonalized update is multiplied by, besides the learning rate.

    ``original`` keeps the operator norm comparable between shapes; ``match_rms``
    (arXiv 2502.16982) gives the update the RMS of AdamW's, about 0.2, whatever the shape.
    """
    if scale == "original":
        return math.sqrt(max(1.0, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))


def expected_update_norm(
    rows: int, columns: int, scale: Scale, coefficients: Coefficients = "classic"
) -> float:
    """Frobenius norm of one update at learning rate 1, for a momentum of full rank."""
    size = _SINGULAR_VALUES[coefficients] * math.sqrt(min(rows, columns))
    return size * scale_factor(rows, columns, scale)


def muon_step(
    gradient_KRC: Tensor,
    momentum_KRC: Tensor,
    *,
    momentum: float,
    nesterov: bool,
    coefficients: Coefficients = "classic",
    compute_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The update of Muon at learning rate 1, before any scale: [K, R, C] in ``compute_dtype``.

    ``momentum_KRC`` is moved in place (a new one would cost 5 % of the time of a step in bfloat16),
    ``gradient_KRC`` is left as it is.
    """
    momentum_KRC.lerp_(gradient_KRC, 1 - momentum)
    direction_KRC = torch.lerp(gradient_KRC, momentum_KRC, momentum) if nesterov else momentum_KRC
    return orthogonalize(direction_KRC, compute_dtype, coefficients)


class MuonLike(PerParameterOptimizer):
    """Abstract base of Muon and its variants: settings, and the size of an update.

    Matrices of a stack of experts are taken at once or one by one, see :func:`takes_stacks`.

    Parameters
    ----------
    parameters : 2-D or 3-D parameters, or groups of them; ``rows`` of a group splits what is fused.
    settings : of its variant, such as ``lr``, ``scale``; each can also stand in a group.
    compute_dtype : of the iteration.

    Raises
    ------
    ValueError : a parameter is neither a matrix nor a stack of matrices.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        scale: Scale,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        coefficients: Coefficients = "classic",
        compute_dtype: torch.dtype = torch.float32,
        **settings: Any,
    ) -> None:
        defaults = {
            "lr": lr,
            "scale": scale,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "coefficients": coefficients,
            "compute": str(compute_dtype).removeprefix("torch."),
            "rows": None,
        }
        super().__init__(parameters, defaults | settings)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim not in (2, 3):
                    raise ValueError(f"Muon takes matrices only, got {tuple(parameter.shape)}")

    def expected_update_norm(self, parameter: Tensor, group: Group) -> float:
        """See :class:`~wrinklefree.optim.contract.Part`."""
        pieces = matrices(parameter, group["rows"])
        how = group["scale"], group["coefficients"]
        return math.hypot(*(expected_update_norm(len(m), m.shape[1], *how) for m in pieces))

    def step_matrices(
        self,
        step: Callable[..., Tensor],
        parameter: nn.Parameter,
        states: Sequence[Tensor],
        group: Group,
        **settings: Any,
    ) -> None:
        """Take a ``step`` for each matrix or stack of ``parameter``, in place.

        ``step`` gets gradient and states, moves the states and returns the update. Weight decay is
        decoupled: a weight shrinks by ``lr * weight_decay``, whatever the scale.
        """
        assert parameter.grad is not None
        settings |= {name: group[name] for name in ("momentum", "nesterov", "coefficients")}
        held = (parameter, parameter.grad, *states)
        stacked = takes_stacks(parameter.device)
        views = [matrices(tensor, group["rows"], stacked) for tensor in held]
        for weight_KRC, gradient_KRC, *own in zip(*views, strict=True):
            update_KRC = step(gradient_KRC, *own, compute_dtype=compute_of(group), **settings)
            rows, columns = weight_KRC.shape[-2:]
            factor = scale_factor(rows, columns, group["scale"])
            weight_KRC.mul_(1 - group["lr"] * group["weight_decay"])
            weight_KRC.add_(update_KRC, alpha=-group["lr"] * factor)


def takes_stacks(device: torch.device) -> bool:
    """Whether matrices of a stack are orthogonalized at once: on CUDA, which one leaves idle.

    That takes some copies of the stack. On a CPU, batched float32 took 6 to 20 % longer from
    64 x 128 on.
    """
    return device.type == "cuda"


def compute_of(group: Group) -> torch.dtype:
    """The type that a group's matrices are orthogonalized in.

    It is in the group as a word, so that a checkpoint has it: another type is another training.
    """
    return getattr(torch, group["compute"])


class Muon(MuonLike):
    """Muon, with its momentum in the type of the parameter; see :class:`MuonLike`."""

    def initial_state(self, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        """See :class:`~wrinklefree.optim.contract.Part`."""
        return {"momentum_buffer": torch.zeros_like(parameter)}

    def step_parameter(
        self, parameter: nn.Parameter, state: dict[str, Tensor], group: Group
    ) -> None:
        """See :class:`~wrinklefree.optim.contract.PerParameterOptimizer`."""
        self.step_matrices(muon_step, parameter, [state["momentum_buffer"]], group)


def build_muon(model: PreTrainedModel, settings: MuonSettings) -> CombinedOptimizer:
    """Muon for hidden matrices, AdamW for every other parameter of ``model``."""
    return muon_with_adamw(Muon, model, settings, nesterov=settings.nesterov)


def muon_with_adamw(
    muon: Callable[..., Part],
    model: PreTrainedModel,
    settings: MuonBase,
    after_step: AfterStep | None = None,
    **choices: Any,
) -> CombinedOptimizer:
    """As :func:`build_muon`, with a variant of Muon and the choices in which it differs."""
    return beside_adamw(
        muon,
        model,
        settings,
        after_step,
        lr=settings.lr,
        scale=settings.scale,
        momentum=settings.momentum,
        coefficients=settings.coefficients,
        compute_dtype=compute_dtype(settings.compute, model.device),
        **choices,
    )
