"""Fewer decoder layers and narrower feed-forward networks: what a dense model does least with.

One shot, from activations on real text, without training (Minitron, arXiv 2407.14679; the depth by
block influence, ShortGPT, arXiv 2403.03853). What is left is trained afterwards, under the whole
model as teacher.

- A layer's importance is ``1 - cos(h_in, h_out)``, the mean over tokens: how far it turns the
  hidden state.
- A feature's is ``rms(a) * |W_down[:, j]|``: how much it adds to the hidden state, where ``a`` is
  what ``down_proj`` gets. Minitron has the activation alone.

Shapes: B rows, T tokens of a row, D hidden size, F features of a feed-forward network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from wrinklefree.errors import UserError
from wrinklefree.mixture.batch import Batch
from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.folder import CONFIG, stored_tensors
from wrinklefree.models.forward import hidden_states
from wrinklefree.models.layers import has_both_kinds
from wrinklefree.models.settings import PruneSettings
from wrinklefree.models.state_space import refuse_states
from wrinklefree.models.surgery import MLP_PROJECTIONS, supported_layers

IMPORTANCES = "importances.json"
"""In the folder of a pruned student: what was measured, by setting of ``subln.prune``."""


def prune_layers(
    model: PreTrainedModel, importances: list[float], remaining: int
) -> PreTrainedModel:
    """The model with its ``remaining`` most important layers in order."""
    order = sorted(range(len(importances)), key=lambda index: -importances[index])
    kept = sorted(order[:remaining])

    def renamed(name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
        before, mark, after = name.partition("layers.")
        index, _, rest = after.partition(".")
        if not mark:
            return name, tensor
        if int(index) not in kept:
            return None
        return f"{before}layers.{kept.index(int(index))}.{rest}", tensor

    layers = model.config.num_hidden_layers
    lists = [
        key
        for key, value in model.config.to_dict().items()
        if isinstance(value, list) and len(value) == layers > 1
        if key != "layer_types" and not key.endswith("token_id")
    ]
    if lists:
        raise UserError(
            f"subln.prune.layers: {min(lists)} of the base's config.json has an item for each"
            " layer, and what it means without some of them is not known here; leave it out"
        )
    changes: dict[str, Any] = {"num_hidden_layers": remaining}
    if types := getattr(model.config, "layer_types", None):
        changes["layer_types"] = [types[index] for index in kept]
    return _rebuilt(model, changes, renamed)


def prune_features(
    model: PreTrainedModel, importances: list[list[float]], remaining: int
) -> PreTrainedModel:
    """The model with the ``remaining`` most important features of each layer in order."""
    importance_LF = torch.tensor(importances, dtype=torch.float64)
    kept = importance_LF.topk(remaining).indices.sort().values

    def sliced(name: str, tensor: Tensor) -> tuple[str, Tensor]:
        *_, index, part, projection, _ = ["", "", "", *name.split(".")]
        if part != "mlp" or projection not in MLP_PROJECTIONS:
            return name, tensor
        if projection != "down_proj":
            return name, tensor[kept[int(index)]]
        return name, tensor[:, kept[int(index)]] if tensor.ndim == 2 else tensor

    return _rebuilt(model, {"intermediate_size": remaining}, sliced)


def pruned_like(model: PreTrainedModel, student: Path) -> PreTrainedModel | None:
    """The dense ``model`` as the student in a folder was cut out of it; None if it is whole."""
    if not (file := student / IMPORTANCES).is_file():
        return None
    tables, config = (json.loads(path.read_text("utf-8")) for path in (file, student / CONFIG))
    if "layers" in tables:
        model = prune_layers(model, tables["layers"], config["num_hidden_layers"])
    if "intermediate_size" in tables:
        model = prune_features(model, tables["intermediate_size"], config["intermediate_size"])
    return model


def layer_importances(model: PreTrainedModel, batches: Sequence[Batch]) -> list[float]:
    """How far every layer turns the hidden states of the tokens of ``batches``."""

    def turned(given_BTD: Tensor, output_BTD: Tensor, real_BT: Tensor) -> Tensor:
        cosine_BT = functional.cosine_similarity(given_BTD, output_BTD, dim=-1)
        return (1 - cosine_BT[real_BT].double()).sum()

    return _shown([mean.item() for mean in _means(model, supported_layers(model), batches, turned)])


def feature_importances(model: PreTrainedModel, batches: Sequence[Batch]) -> list[list[float]]:
    """How much every feature adds to the hidden states, by layer."""

    def squares(given_BTF: Tensor, output_BTD: Tensor, real_BT: Tensor) -> Tensor:
        return given_BTF[real_BT].double().square().sum(0)

    downs = [layer.get_submodule("mlp.down_proj") for layer in supported_layers(model)]
    return [
        _shown(
            (mean_F.sqrt() * down.get_parameter("weight").detach().double().norm(dim=0)).tolist()
        )
        for mean_F, down in zip(_means(model, downs, batches, squares), downs, strict=True)
    ]


@torch.no_grad()
def _means(
    model: PreTrainedModel,
    modules: Sequence[nn.Module],
    batches: Sequence[Batch],
    total: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> list[Tensor]:
    """For every module the mean over tokens of ``total``: the sum over the tokens that a mask marks
    of what the module gets and gives."""
    sums: list[Any] = [0.0] * len(modules)
    for batch in batches:
        real_BT = batch.document_ids_BT >= 0
        with ExitStack() as stack:
            for index, module in enumerate(modules):

                def gather(
                    module: nn.Module,
                    given: tuple[Tensor],
                    output: Tensor,
                    index: int = index,
                    real_BT: Tensor = real_BT,
                ) -> None:
                    sums[index] = sums[index] + total(given[0], output, real_BT)

                stack.callback(module.register_forward_hook(gather).remove)
            mask = causal_document_mask(batch.document_ids_BT)
            hidden_states(model, batch.tokens_BT, batch.positions_BT, mask)
    tokens = sum(int((batch.document_ids_BT >= 0).sum()) for batch in batches)
    return [one / tokens for one in sums]


def _shown(importances: list[float]) -> list[float]:
    """To as many digits as float32 has."""
    return [float(f"{value:.7g}") for value in importances]


def check_prune(settings: PruneSettings, model: PreTrainedModel) -> None:
    """Raise UserError where more shall remain than there is, or the architecture is in the way."""
    if settings.layers or settings.intermediate_size:
        refuse_states(model, "they can't be pruned; leave subln.prune out")
    check_pruned_shape(settings, model.config)


def check_pruned_shape(settings: PruneSettings, config: PreTrainedConfig) -> None:
    """Raise UserError where that shows in the configuration of the base."""
    if settings.layers and has_both_kinds(config):
        raise UserError(
            "subln.prune.layers is set, and some layers of the base have experts and others have"
            " none, by their number (mlp_only_layers, decoder_sparse_step); leave it out"
        )
    if settings.intermediate_size and getattr(config, "num_experts", None):
        raise UserError(
            "subln.prune.intermediate_size is set, and the base has experts, whose features are not"
            " pruned; leave it out"
        )
    if said := settings.beyond("the base", config.num_hidden_layers, config.intermediate_size):
        raise UserError(said)


def _rebuilt(
    model: PreTrainedModel,
    changes: dict[str, Any],
    change: Callable[[str, Tensor], tuple[str, Tensor] | None],
) -> PreTrainedModel:
    """A model of the changed configuration, with what ``change`` makes of every tensor."""
    config = type(model.config).from_dict(model.config.to_dict() | changes)
    with no_init_weights():
        rebuilt = AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa", dtype=torch.float32
        )
    rebuilt.tie_weights()
    tensors = (change(name, tensor) for name, tensor in stored_tensors(model).items())
    into = stored_tensors(rebuilt)
    with torch.no_grad():
        for name, tensor in filter(None, tensors):
            into.pop(name).copy_(tensor)
    assert not into, f"{sorted(into)} were not set"
    return rebuilt.eval()
