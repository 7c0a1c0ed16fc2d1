"""Weights with NaN or infinity in them: no training and no measure of theirs means anything."""

from __future__ import annotations

from torch import nn

from wrinklefree.errors import UserError


def first_not_finite(model: nn.Module) -> tuple[str, int] | None:
    """(name, count) of the first parameter or buffer that holds NaN or infinity, or None.

    One pass over each tensor, without memory of its size.
    """
    for named in (model.named_parameters(), model.named_buffers()):
        for name, tensor in named:
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            smallest, largest = tensor.detach().aminmax()  # NaN wins over every number
            if not (smallest.isfinite() and largest.isfinite()):
                return name, int((~tensor.isfinite()).sum())
    return None


def require_finite(model: nn.Module, where: str) -> None:
    """Raise a UserError that names a tensor of ``model`` which is not finite.

    ``where`` is what the message begins with: the model's folder or its place in the settings.
    """
    if found := first_not_finite(model):
        name, count = found
        buffers = dict(model.named_buffers())
        total = (buffers[name] if name in buffers else model.get_parameter(name)).numel()
        cause = (
            "it is computed from config.json, of which a number is wrong"
            if name in buffers
            else "the weights are damaged or come from a training that diverged; use others"
        )
        raise UserError(
            f"{where}: {count} of {total} values of {name} are NaN or infinite; {cause}"
        )
