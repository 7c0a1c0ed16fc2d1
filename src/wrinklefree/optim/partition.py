"""Which kind each parameter is of, by rules: what an optimizer does with it depends on that."""

from __future__ import annotations

import itertools
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.models.layers import decoder_layers, head_size

Kind = Literal["matrix", "expert_stack", "router", "embedding", "head", "norm", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)
HIDDEN: tuple[Kind, ...] = ("matrix", "expert_stack")
"""Kinds whose parameters are matrices of decoder layers; an expert stack is a batch of them."""
_ROUTERS = {"gate", "router", "shared_expert_gate"}
_FUSED_QKV = {"qkv_proj", "Wqkv"}


class Partition(NamedTuple):
    """Parameters of one kind, in the order of the model."""

    kind: Kind
    rows: list[int] | None
    """Rows of each projection, where several are fused in one matrix."""
    parameters: list[nn.Parameter]


def partition_parameters(model: PreTrainedModel) -> list[Partition]:
    """All parameters of ``model``, trainable or not, each in one partition; a tied one once.

    The rules, of which the first that fits decides:

    - ``embedding``: in an ``nn.Embedding``, also where the head is tied to it;
    - ``head``: the weight of the output embeddings;
    - ``norm``: the gains of a module whose name has ``norm`` in it;
    - ``other`` (biases): fewer than two dimensions; any bias, convolutions, and all else outside of
      decoder layers;
    - ``router``: of a module named ``gate``, ``router`` or ``shared_expert_gate``;
    - ``other``: a single row or column, such as scales;
    - ``expert_stack``: 3-D; ``matrix``: 2-D.

    Raises
    ------
    ValueError : a weight is shared between a hidden matrix and another parameter, or two distinct
        parameters overlap in memory (a gradient would reach only one of them); or the rows of a
        fused projection are not those that the configuration says.
    """
    _refuse_overlaps(model)
    inside = {id(module) for layer in decoder_layers(model) for module in layer.modules()}
    found: dict[str, Partition] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                names = (path.rpartition(".")[2], leaf)
                kind = _kind(names, module, parameter, model, hidden=id(module) in inside)
                rows = _fused_rows(names, parameter, model) if kind in HIDDEN else None
                partition = found.setdefault(f"{kind} {rows}", Partition(kind, rows, []))
                partition.parameters.append(parameter)
    _refuse_ties_across(model, inside, found.values())
    return sorted(found.values(), key=lambda partition: KINDS.index(partition.kind))


def _kind(
    names: tuple[str, str], module: nn.Module, parameter: Tensor, model: Any, *, hidden: bool
) -> Kind:
    owner, leaf = names
    if isinstance(module, nn.Embedding):
        return "embedding"
    if module is model.get_output_embeddings() and leaf == "weight":
        return "head"
    if "norm" in owner and leaf == "weight":
        return "norm"
    if parameter.ndim < 2 or not hidden or leaf.endswith("bias") or isinstance(module, nn.Conv1d):
        return "other"
    if owner in _ROUTERS:
        return "router"
    if 1 in parameter.shape[-2:]:
        return "other"
    return "expert_stack" if parameter.ndim == 3 else "matrix"


def _fused_rows(
    names: tuple[str, str], parameter: Tensor, model: PreTrainedModel
) -> list[int] | None:
    """Rows of query, key and value, or of gate and up, in a matrix that holds them all."""
    config, rows = model.config.get_text_config(), parameter.shape[-2]
    if "gate_up_proj" in names and parameter.shape[-1] == config.hidden_size and rows % 2 == 0:
        return [rows // 2] * 2
    if not _FUSED_QKV.intersection(names):
        return None
    heads, size = config.num_attention_heads, head_size(config)
    key_rows = size * (getattr(config, "num_key_value_heads", None) or heads)
    if heads * size + 2 * key_rows != rows:
        raise ValueError(
            f"{'.'.join(names)} has {rows} rows, expected {heads * size} of queries and twice"
            f" {key_rows} of keys and values; split the projection, or mend the configuration"
        )
    return [heads * size, key_rows, key_rows]


def _refuse_ties_across(model: PreTrainedModel, inside: set[int], partitions: Any) -> None:
    hidden = {id(p) for part in partitions if part.kind in HIDDEN for p in part.parameters}
    for module_name, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in hidden and id(module) not in inside:
                raise ValueError(
                    f"{module_name}.{name} is tied to a weight inside a decoder layer, so that it"
                    " belongs to two optimizers at once; untie it"
                )


def _refuse_overlaps(model: PreTrainedModel) -> None:
    spans = sorted(
        (
            parameter.untyped_storage().data_ptr(),
            parameter.storage_offset(),
            parameter.numel(),
            name,
        )
        for name, parameter in model.named_parameters()
        if parameter.numel() and not parameter.is_meta
    )
    for (storage, start, length, name), (
        next_storage,
        next_start,
        _,
        next_name,
    ) in itertools.pairwise(spans):
        if storage == next_storage and next_start < start + length:
            raise ValueError(
                f"{name} and {next_name} are different parameters in the same memory; tie them as"
                " one parameter (model.tie_weights())"
            )


def matrices(tensor: Tensor, rows: list[int] | None, stacked: bool = False) -> list[Tensor]:
    """The matrices [R, C] that a hidden parameter (or its gradient, its state) holds, as views.

    Parameters
    ----------
    tensor : [R, C], or [E, R, C] for a stack of experts.
    rows : of each projection that is fused in a matrix; None: one.
    stacked : leave those of one projection together, [E, R, C].
    """
    whole = (tensor,) if stacked or tensor.ndim == 2 else tensor.unbind()
    return [piece for held in whole for piece in (held.split(rows, dim=-2) if rows else (held,))]
