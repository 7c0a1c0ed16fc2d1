"""The model without memory, and what a step would allocate.

Fake tensors have shapes, types and a device, and no contents: the real layers run on them in
milliseconds, and autograd keeps of them what it would keep. So nothing here has to know what a
layer saves.

Shapes: R rows of S tokens, D hidden size.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from wrinklefree.models.attention import AttentionRule, causal_document_mask
from wrinklefree.models.experts import layers_with_experts, open_experts
from wrinklefree.models.surgery import insert_bitlinear, insert_subln
from wrinklefree.quant.settings import QuantizerSettings


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside the block, and that still live.

    Parameters
    ----------
    others : tensors that were there before, of which the block may make views.
    """

    def __init__(self, others: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = weakref.WeakSet[Any](tensor.untyped_storage() for tensor in others)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and take note of what it returns."""
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return found

    def _note(self, storage: Any) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.now -= size


@dataclass(frozen=True)
class Phases:
    """Bytes of a computation beyond parameters and gradients."""

    kept: int
    """After the forward pass: for the backward pass."""
    more: int
    """What the backward pass holds beside them at most."""


def model_on_meta(
    config: PreTrainedConfig, quantizer: QuantizerSettings | None = None, *, subln: bool = True
) -> PreTrainedModel:
    """The model of ``config`` without memory; a ternary one, with or without SubLN, where it has a
    quantizer."""
    with torch.device("meta"), no_init_weights():
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa", dtype=torch.float32
        )
        for layer in layers_with_experts(model):
            open_experts(layer)  # since those of transformers need to know who reads which token
        if quantizer and subln:
            insert_subln(model)
        if quantizer:
            insert_bitlinear(model, quantizer)
    model.tie_weights()
    return model


def decoder_phases(
    model: PreTrainedModel,
    rows: int,
    length: int,
    autocast: torch.dtype | None,
    run: Callable[[PreTrainedModel, Tensor, Tensor, AttentionRule], Tensor],
) -> Phases:
    """What a training step holds of the decoder; ``run`` gives its hidden states [R, S, D]."""
    ids_RS = torch.zeros(rows, length, dtype=torch.int64)
    mask = causal_document_mask(ids_RS)
    _ = mask.spans  # found here, where tensors have contents
    with FakeTensorMode(allow_non_fake_inputs=True):
        _fill(model.train())
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        with LiveBytes([*model.parameters(), *model.buffers()]) as live:
            with torch.autocast("cpu", autocast, enabled=autocast is not None):
                hidden_RSD = run(model, ids_RS, ids_RS, mask)
            kept, live.peak = live.now, live.now
            hidden_RSD.backward(torch.empty_like(hidden_RSD))
            return Phases(kept, live.peak - kept)


def phases_of(compute: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Phases:
    """What ``compute``, a scalar of float32 tensors of these shapes, holds."""
    with FakeTensorMode():
        inputs = [torch.empty(shape, requires_grad=True) for shape in shapes]
        with LiveBytes(inputs) as live:
            scalar = compute(*inputs)
            kept, peak, live.peak = live.now, live.peak, live.now
            scalar.backward()
            return Phases(kept, max(peak, live.peak) - kept)


def _fill(model: nn.Module) -> None:
    """Fake tensors of the CPU in place of those without a device, tied ones together."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                made.setdefault(id(parameter), nn.Parameter(_like(parameter)))
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _like(buffer)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)
