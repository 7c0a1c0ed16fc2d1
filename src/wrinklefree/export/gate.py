"""The exported folder must compute what our model computes, in the runtime it is meant for.

Two runtimes add in another order. A difference in the last bit moves an activation across a
rounding boundary now and then, to the next of its 255 codes, and the layers after it see that. How
far it grows is a property of the model: a 30-layer model that was quantized and not yet trained
answers noise of one part in 10^7 on its embeddings with logits that are 28 % off. So the comparison
is first layer by layer on equal inputs, where nothing can grow and another epsilon, activation or
order of heads shows at once; then of the logits, against the model's own answer to such noise. What
is in the file is compared before, tensor by tensor: SubLN cancels a wrong scale of ``up``.

Shapes: B rows, T tokens of a row, S tokens of a continued row, D hidden size, V vocabulary, O
outputs and N inputs of a linear layer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from wrinklefree.export.layouts import Layout
from wrinklefree.export.reference import (
    largest_difference,
    logits_of_rows,
    noisy_logits_of_rows,
    relative,
)
from wrinklefree.models.folder import CONFIG, WEIGHTS, stored_tensors
from wrinklefree.models.layers import decoder_layers
from wrinklefree.quant.bitlinear import BitLinear

GREEDY_TOKENS = 32
LAYER_TOLERANCE = 1e-2
"""Bound of the difference of what a layer adds to its input, relative to what it adds. About 1e-3
was seen where activations crossed a boundary."""
LOGITS_TOLERANCE = 1e-2
"""Bound of the relative difference of logits, of a model that does not amplify rounding."""
AMPLIFICATION_MARGIN = 4.0
"""How many times its own answer to noise a model's logits may be off."""
_ROUNDING = 2 * torch.finfo(torch.float32).eps
"""Relative; a scale may be written as what to divide by."""
_SCALE = ".weight_scale"


@torch.no_grad()
def check_tensors(
    folder: Path, model: PreTrainedModel, layout: Layout, dtype: torch.dtype = torch.float32
) -> None:
    """Read ``folder`` back, with the decoder of stock transformers.

    Ternary matrices are our codes, to the bit, times our scale, to the rounding of float32. Other
    tensors are ours rounded to ``dtype``.

    Raises
    ------
    RuntimeError : a tensor is missing, too many, or not ours; with its name.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, BitLinear)}
    ours = stored_tensors(model)
    matrices: dict[str, BitLinear] = {}
    for name, layer in layers.items():
        ours.pop(f"{name}.alpha", None)  # a learned scale is in the weights
        (place,) = layout.place({f"{name}.weight": layer.weight})
        matrices[place] = layer
    expected, written = layout.place(ours), _Written(folder)
    if other := sorted(set(expected) ^ written.names):
        raise RuntimeError(f"{folder}: {', '.join(other)}: not both in the file and of our model")
    for name, tensor in expected.items():
        if name in matrices:
            codes_ON, scale = matrices[name].ternary_codes()
            tensor = codes_ON * scale
        rounded = tensor.to(dtype).float()
        same = (written.values(name) - rounded).abs() <= _ROUNDING * rounded.abs()
        if wrong := int((~same).sum()):
            raise RuntimeError(f"{folder}: {wrong} of {same.numel()} values of {name} are not ours")


class _Written:
    """Tensors of an exported folder as stock transformers takes them."""

    def __init__(self, folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = config.get("quantization_config", {}).get("linear_class")
        self._divides = kind == "bitlinear"
        self._scales = {
            name.removesuffix(_SCALE): tensors.pop(name)
            for name in list(tensors)
            if name.endswith(_SCALE)
        }
        self._tensors = tensors
        self.names = set(tensors)

    def values(self, name: str) -> Tensor:
        """float32: codes by their scale; a bias by it as well, in the class that multiplies."""
        tensor, (owner, _, kind) = self._tensors[name], name.rpartition(".")
        if (scale := self._scales.get(owner)) is None:
            return tensor.float()
        if kind == "weight":
            from transformers.integrations.bitnet import unpack_weights  # it imports the compiler

            with torch.compiler.set_stance("force_eager"):
                tensor = unpack_weights(tensor, dtype=scale.dtype)
            return tensor / scale if self._divides else tensor * scale
        return tensor if self._divides else tensor * scale


@torch.no_grad()
def compare_with_stock(ours: PreTrainedModel, folder: Path, tokens_BT: Tensor) -> dict[str, Any]:
    """Load ``folder`` with stock transformers, in float32, and compare with our model as it is.

    Parameters
    ----------
    tokens_BT : int64 rows; their logits are compared, and each is continued by 32 greedy tokens.
        There is no mask: end-of-text tokens that pad a row are read as text, by both models.

    Returns
    -------
    facts : ``layer_relative_difference``, of the worst layer on equal inputs;
        ``logits_max_difference`` (absolute); ``logits_relative_difference`` (RMS over RMS), and the
        same under ``logits_relative_sensitivity`` for our model against itself with rounding noise
        on its embeddings; ``greedy_tokens`` compared, and ``greedy_ties``: rows whose continuations
        part at a token where our two logits are closer than the runtimes are to each other.

    Raises
    ------
    RuntimeError : layers or logits are off beyond rounding, or greedy tokens differ without a tie.
    """
    # The stock layers are compiled on first use, which needs a C compiler.
    with torch.compiler.set_stance("force_eager"):
        stock = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="sdpa", dtype=torch.float32
        ).eval()
        if [type(stock).__name__] != stock.config.architectures:
            raise RuntimeError(f"{folder} loads as {type(stock).__name__}")
        layer_difference = _compare_layers(ours, stock, folder, tokens_BT)
        our_logits, stock_logits = logits_of_rows(ours, tokens_BT), logits_of_rows(stock, tokens_BT)
        difference = relative(stock_logits, our_logits)
        sensitivity = relative(noisy_logits_of_rows(ours, tokens_BT), our_logits)
        allowed = max(LOGITS_TOLERANCE, AMPLIFICATION_MARGIN * sensitivity)
        if not difference <= allowed:
            raise RuntimeError(
                f"{folder}: logits in transformers differ from ours by {difference:.2g} of their"
                f" size, allowed {allowed:.2g}"
            )
        largest = largest_difference(stock_logits, our_logits)
        ours_BS, stock_BS = _greedy(ours, tokens_BT), _greedy(stock, tokens_BT)
        ties = _check_greedy(ours, folder, ours_BS, stock_BS, tokens_BT.shape[1], largest)
    return {
        "layer_relative_difference": layer_difference,
        "logits_max_difference": largest,
        "logits_relative_difference": difference,
        "logits_relative_sensitivity": sensitivity,
        "greedy_tokens": tokens_BT.shape[0] * GREEDY_TOKENS,
        "greedy_ties": ties,
    }


def _compare_layers(
    ours: PreTrainedModel, stock: PreTrainedModel, folder: Path, tokens_BT: Tensor
) -> float:
    """The largest difference of any part of the two models on the same input."""
    stock_parts = _parts(stock)
    squares: dict[str, Tensor] = {}  # sums of differences', and of what is compared

    def compare(name: str, added_to_input: bool) -> Any:
        def hook(
            module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Tensor
        ) -> None:
            start = arguments[0] if added_to_input else 0.0
            theirs, added = stock_parts[name](*arguments, **named) - start, output - start
            both = (theirs - added).double(), added.double()
            squares[name] = squares.get(name, 0) + torch.stack([x.square().sum() for x in both])

        return hook

    handles = [
        module.register_forward_hook(compare(name, name.startswith("layer")), with_kwargs=True)
        for name, module in _parts(ours).items()
    ]
    try:
        for row_T in tokens_BT:
            ours(input_ids=row_T[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    differences = {name: (off / whole).sqrt().item() for name, (off, whole) in squares.items()}
    for name, difference in differences.items():
        if not difference <= LAYER_TOLERANCE:
            raise RuntimeError(
                f"{folder}: {name} in transformers differs from ours on the same input by"
                f" {difference:.2g} of its output, allowed {LAYER_TOLERANCE:g}"
            )
    return max(differences.values())


def _parts(model: PreTrainedModel) -> dict[str, nn.Module]:
    layers = {f"layer {index}": layer for index, layer in enumerate(decoder_layers(model))}
    norm = model.get_decoder().get_submodule("norm")
    head = model.get_output_embeddings()
    assert head is not None
    return {"embedding": model.get_input_embeddings(), **layers, "norm": norm, "head": head}


def _greedy(model: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    """``tokens_BT`` and 32 more of each row; the end of text does not stop it."""
    tokens_BS, step_BT, cache = tokens_BT, tokens_BT, None
    for _ in range(GREEDY_TOKENS):
        output = model(input_ids=step_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        step_BT = output.logits[:, -1:].argmax(-1)
        tokens_BS = torch.cat([tokens_BS, step_BT], dim=1)
    return tokens_BS


def _check_greedy(
    ours: PreTrainedModel,
    folder: Path,
    ours_BS: Tensor,
    stock_BS: Tensor,
    prompt_length: int,
    rounding: float,
) -> int:
    """Number of rows that part at a tie; RuntimeError for any that parts elsewhere."""
    parted = (ours_BS != stock_BS).any(dim=1).nonzero().flatten().tolist()
    for row in parted:
        position = int((ours_BS[row] != stock_BS[row]).nonzero()[0])
        logits_V = torch.from_numpy(logits_of_rows(ours, ours_BS[row : row + 1, :position])[0][-1])
        chosen, other = int(ours_BS[row, position]), int(stock_BS[row, position])
        gap = (logits_V[chosen] - logits_V[other]).item()
        # Either of the two logits may be off by the rounding.
        if gap > 2 * rounding:
            raise RuntimeError(
                f"{folder}: greedy token {position - prompt_length} of row {row} is {other} in"
                f" transformers and {chosen} here, by {gap:.3g} in the logits"
            )
    return len(parted)
