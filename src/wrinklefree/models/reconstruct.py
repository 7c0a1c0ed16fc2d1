"""Decoder layers trained one after the other: stage 2 starts from a model and not from noise.

Through a whole model that was rounded at once, gradients pass the noise of every layer, and the
target is one token. A layer alone has as many targets as its hidden state has numbers, and a step
costs it what it costs one layer. Layers are trained in order, each on what the trained ones before
it make of the rows, towards the hidden state behind it in the dense model: so what the earlier ones
lost is fought, and not handed on. Errors are relative to the size of each token: the few with
massive activations count as any other. Latent weights are not snapped to codes, from where training
could not move them. As the blocks of EfficientQAT (arXiv 2407.11062), which there are trained for
the error of their own outputs, in plain squares.

Shapes: B rows, T tokens of a row, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.kernels.capabilities import chosen_precision
from wrinklefree.models.calibration import LayerInput, first_layer_input
from wrinklefree.models.layers import decoder_layers, hidden_of
from wrinklefree.models.settings import ReconstructSettings
from wrinklefree.models.states import relative_error
from wrinklefree.models.surgery import subln_modules
from wrinklefree.quant.bitlinear import forget_codes, quantization_lambda_of
from wrinklefree.tracking.files import write_atomically
from wrinklefree.tracking.progress import Progress
from wrinklefree.tracking.terminal import say

if TYPE_CHECKING:
    from wrinklefree.mixture.batch import Batch

_WARMUP_STEPS = 5
_BETAS = (0.9, 0.95)


def reconstruct_layers(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    settings: ReconstructSettings,
    work: Path,
    log: Callable[[int, dict[str, float]], None] = lambda layer, errors: None,
) -> dict[str, Any]:
    """Train every decoder layer of ``model``, which has ternary layers, in place.

    Parameters
    ----------
    batches : training rows, ``settings.batch_size`` at a time.
    work : where each trained layer is kept, so that a killed run goes on behind the last of them.
    log : told ``error_before`` and ``error_after`` of every layer: the mean over tokens of the
        squared error of its output over the square of the dense model's.

    Returns
    -------
    facts : ``tokens``, the ``precision`` of products, and both errors of every layer in order.

    Raises
    ------
    UserError : an error is not finite.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = chosen_precision(settings.precision, device)
    facts: dict[str, Any] = {"precision": precision, "layers": []}
    # Without its cache: what that holds of a weight is no longer the weight after a step.
    bfloat16 = precision == "bfloat16"
    computing = torch.autocast(device, torch.bfloat16, enabled=bfloat16, cache_enabled=False)
    layers = decoder_layers(model)
    kept = [work / f"layer_{index:03}.safetensors" for index in range(len(layers))]
    if finished := sum(file.is_file() for file in kept):
        say(f"reconstruct: going on behind layer {finished - 1}")
    progress = Progress("reconstruct", "layers", len(layers))
    with closing(progress), quantization_lambda_of(model, 1.0), computing:
        dense = [first_layer_input(model, batch) for batch in batches]
        facts["tokens"] = sum(int(item.real_BT.sum()) for item in dense)
        ternary = list(dense)
        for index, layer in enumerate(layers):
            layer.to(device)  # one at a time
            with _made_dense(layer):
                _pass_on(layer, dense)
            errors = {"error_before": _error(layer, ternary, dense)}
            if kept[index].is_file():
                layer.load_state_dict(load_file(kept[index]))
            else:
                _train(layer, ternary, dense, settings)
            errors["error_after"] = _error(layer, ternary, dense)
            if not all(map(math.isfinite, errors.values())):
                raise UserError(
                    f"subln.reconstruct: the error of layer {index} went from"
                    f" {errors['error_before']:.3g} to {errors['error_after']:.3g}; lower"
                    " subln.reconstruct.lr"
                )
            if not kept[index].is_file():
                trained = {name: tensor.cpu() for name, tensor in layer.state_dict().items()}
                write_atomically(kept[index], save(trained))
            _pass_on(layer, ternary)
            layer.to(model.device)
            forget_codes(layer)
            facts["layers"].append(errors)
            log(index, errors)
            note = f"layer {index}: error {errors['error_before']:.3f} to"
            progress.advance(1, f"{note} {errors['error_after']:.3f}")
    progress.finish()
    return facts


def _train(
    layer: nn.Module,
    given: list[LayerInput],
    wanted: list[LayerInput],
    settings: ReconstructSettings,
) -> None:
    optimizer = torch.optim.AdamW(
        layer.parameters(), lr=settings.lr, betas=_BETAS, weight_decay=0.0, fused=True
    )
    steps, device = settings.epochs * len(given), _device_of(layer)
    for step in range(steps):
        item, target = (items[step % len(given)].to(device) for items in (given, wanted))
        rise = min(1.0, (step + 1) / _WARMUP_STEPS)
        optimizer.param_groups[0]["lr"] = settings.lr * rise * (1 - step / steps)
        output_BTD = hidden_of(layer(item.hidden_BTD, **item.arguments))
        error_BT = relative_error(target.hidden_BTD, output_BTD.float())
        error_BT[item.real_BT].mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def _error(layer: nn.Module, given: list[LayerInput], wanted: list[LayerInput]) -> float:
    total, tokens = 0.0, 0
    for item, target in zip(given, wanted, strict=True):
        error_BT = relative_error(target.hidden_BTD, _output(layer, item))
        total += error_BT[item.real_BT].double().sum().item()
        tokens += int(item.real_BT.sum())
    return total / tokens


def _pass_on(layer: nn.Module, items: list[LayerInput]) -> None:
    """Make of what the layer gets what the next one gets."""
    for index, item in enumerate(items):
        items[index] = replace(item, hidden_BTD=_output(layer, item))


@torch.no_grad()
def _output(layer: nn.Module, item: LayerInput) -> Tensor:
    """float32 [B, T, D], where the item is and not where the layer is."""
    moved = item.to(_device_of(layer))
    output_BTD = hidden_of(layer(moved.hidden_BTD, **moved.arguments)).float()
    return output_BTD.to(item.hidden_BTD.device)


def _device_of(layer: nn.Module) -> torch.device:
    return next(layer.parameters()).device


@contextmanager
def _made_dense(layer: nn.Module) -> Iterator[None]:
    """Inside the block the layer computes what it did before surgery: parameters are shared."""
    modules = subln_modules(layer)
    try:
        for name, module in modules.items():
            layer.set_submodule(name, module.linear)
        with quantization_lambda_of(layer, 0.0):
            yield
    finally:
        for name, module in modules.items():
            layer.set_submodule(name, module)
