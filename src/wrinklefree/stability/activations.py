"""What int8 loses of the activations that ternary layers read.

A token's scale follows its largest entry, so one outlier takes the codes from all others: they
round to 0 and are lost (outliers grow with training, LLM.int8(), arXiv 2208.07339).

Shapes: M tokens, N features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from wrinklefree.quant.bitlinear import ternary_layers_by_name
from wrinklefree.quant.ternary import activation_codes

_HALF_STEP = 0.501
"""Beyond rounding, an entry was clipped; more than a half because products are rounded too."""


@dataclass(frozen=True)
class LayerActivations:
    """The tokens that a layer read."""

    peak_over_rms: float
    """The largest entry over the root mean square of its token, at the token where it is most."""
    quantization_error: float
    """Norm of what int8 changes in a token, over the token's norm; the mean over tokens."""
    zeroed: float
    """Share of the entries that are not 0 and become 0."""
    clipped: float
    """Share of the entries that are changed by more than rounding."""


class ActivationTelemetry:
    """Measures the input of every ``TernaryLayer`` in ``model`` while the block is open.

    ``with ActivationTelemetry(model) as telemetry: model(...)``, then ``telemetry.metrics()``. What
    the model computes stays as it is; its strength of quantization does not matter. What activation
    checkpointing computes again counts again, which changes no mean and no maximum. Layers that
    read the same tensor (``k_proj`` and ``v_proj`` that of ``q_proj``) are measured once, under the
    name of the first.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = ternary_layers_by_name(model)
        self._found: dict[str, list[Tensor]] = {}
        """For each call of a layer its tokens and entries, the sum of their errors, entries that
        became 0 and that were clipped, and the highest peak; where the activations are."""
        self._last: Tensor | None = None

    def __enter__(self) -> ActivationTelemetry:
        """Begin to measure."""
        self._hooks = [
            module.register_forward_pre_hook(partial(self._measure, name))
            for name, module in self._layers.items()
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Measure no more."""
        for hook in self._hooks:
            hook.remove()
        self._last = None

    @torch.no_grad()
    def _measure(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0] is self._last:
            return
        self._last = inputs[0]
        value_MN = inputs[0].flatten(0, -2).float()
        codes_MN, scale_M1 = activation_codes(value_MN)
        scaled_MN = value_MN * scale_M1
        lost_MN = scaled_MN - codes_MN
        # Of tokens that are all 0 nothing is lost.
        norm_M = torch.linalg.vector_norm(scaled_MN, dim=1).clamp(min=1e-30)
        rms_M = norm_M / scaled_MN.shape[1] ** 0.5
        found = [
            torch.linalg.vector_norm(lost_MN, dim=1).div(norm_M).sum(),
            ((codes_MN == 0) & (value_MN != 0)).sum(),
            (lost_MN.abs() > _HALF_STEP).sum(),
            (scaled_MN.abs().amax(dim=1) / rms_M).amax(),
        ]
        counts = lost_MN.new_tensor([len(lost_MN), lost_MN.numel()], dtype=torch.float64)
        measured = torch.cat([counts, torch.stack([number.double() for number in found])])
        self._found.setdefault(name, []).append(measured)

    def layers(self) -> dict[str, LayerActivations]:
        """What was measured so far, by the layer's name in the model."""
        found = {}
        for name, calls in self._found.items():
            measured = torch.stack(calls).cpu()
            tokens, entries, error, zeroed, clipped, _ = measured.sum(0).tolist()
            found[name] = LayerActivations(
                peak_over_rms=measured[:, -1].max().item(),
                quantization_error=error / tokens,
                zeroed=zeroed / entries,
                clipped=clipped / entries,
            )
        return found

    def metrics(self) -> dict[str, float]:
        """Numbers to log, none without layers: for each field of :class:`LayerActivations` its mean
        over layers (``activation/zeroed``), that of the worst (``activation/zeroed_worst``) and of
        each (``activation/zeroed/<layer>``).
        """
        return layer_metrics("activation", self.layers(), worst=True)


def layer_metrics(
    prefix: str, layers: Mapping[str, Any], *, worst: bool = False
) -> dict[str, float]:
    """Of each field of ``layers``, which are by name: the mean, the highest, and that of each."""
    metrics: dict[str, float] = {}
    for field in vars(next(iter(layers.values()))) if layers else ():
        values = {name: vars(layer)[field] for name, layer in layers.items()}
        metrics[f"{prefix}/{field}"] = sum(values.values()) / len(values)
        if worst:
            metrics[f"{prefix}/{field}_worst"] = max(values.values())
        metrics |= {f"{prefix}/{field}/{name}": value for name, value in values.items()}
    return metrics
