"""Which parameters are hidden matrices (Muon's), and which are all the others (AdamW's)."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel

from wrinklefree.models.layers import decoder_layers


class Partition(NamedTuple):
    """All parameters of a model, each in exactly one list, in the order of the model."""

    matrices: list[nn.Parameter]
    """2-D weights inside decoder layers."""
    others: list[nn.Parameter]
    """Embeddings, output head, norms, biases."""


def partition_parameters(model: PreTrainedModel) -> Partition:
    """Split the parameters of ``model``, trainable or not; a tied one appears once.

    Raises
    ------
    ValueError : a weight is shared between a hidden matrix and another parameter, or two distinct
        parameters overlap in memory (a gradient would reach only one of them).
    """
    hidden = {
        id(parameter)
        for layer in decoder_layers(model)
        for parameter in layer.parameters()
        if parameter.ndim == 2
    }
    _refuse_overlaps(model)
    _refuse_ties_across(model, hidden)
    parameters = list(model.parameters())
    return Partition(
        matrices=[parameter for parameter in parameters if id(parameter) in hidden],
        others=[parameter for parameter in parameters if id(parameter) not in hidden],
    )


def _refuse_ties_across(model: PreTrainedModel, hidden: set[int]) -> None:
    inside = {id(module) for layer in decoder_layers(model) for module in layer.modules()}
    for module_name, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in hidden and id(module) not in inside:
                raise ValueError(
                    f"{module_name}.{name} is tied to a weight inside a decoder layer, so that it"
                    " belongs to Muon and to AdamW at once; untie it"
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
