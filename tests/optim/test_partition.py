from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.models.layers import decoder_layers
from wrinklefree.optim.partition import partition_parameters


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("bits", [False, True])
def test_hidden_matrices_on_one_side_everything_else_on_the_other(
    build_model: Callable[..., PreTrainedModel], family: str, bits: bool
) -> None:
    model = build_model(family, bits=bits)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices, others = partition_parameters(model)
    suffixes = {names[id(parameter)].split(".", 3)[-1] for parameter in matrices}
    projections = [f"self_attn.{letter}_proj.weight" for letter in "qkvo"]
    assert suffixes == {*projections, *(f"mlp.{way}_proj.weight" for way in ("gate", "up", "down"))}
    assert "model.embed_tokens.weight" in {names[id(parameter)] for parameter in others}
    assert all(parameter.ndim == 1 or "embed" in names[id(parameter)] for parameter in others)


def test_each_parameter_appears_once_although_the_head_is_tied(
    build_model: Callable[..., PreTrainedModel],
) -> None:
    model = build_model()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    both = [id(parameter) for group in partition_parameters(model) for parameter in group]
    assert sorted(both) == sorted(id(parameter) for parameter in model.parameters())


def test_parameters_that_do_not_train_are_still_in_the_partition(
    build_model: Callable[..., PreTrainedModel],
) -> None:
    model = build_model().requires_grad_(False)
    assert sum(map(len, partition_parameters(model))) == len(list(model.parameters()))


def test_a_tie_between_a_hidden_matrix_and_the_head_is_refused(
    build_model: Callable[..., PreTrainedModel],
) -> None:
    model = build_model()
    model.lm_head.weight = decoder_layers(model)[1].self_attn.o_proj.weight
    with pytest.raises(ValueError, match=r"lm_head\.weight"):
        partition_parameters(model)


def test_hidden_matrices_tied_to_each_other_appear_once(
    build_model: Callable[..., PreTrainedModel],
) -> None:
    model = build_model()
    first, second = decoder_layers(model)
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    matrices = partition_parameters(model).matrices
    assert sum(parameter is first.mlp.up_proj.weight for parameter in matrices) == 1


def test_distinct_parameters_in_the_same_memory_are_refused(
    build_model: Callable[..., PreTrainedModel],
) -> None:
    model = build_model()
    model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.detach())
    with pytest.raises(ValueError, match="same memory"):
        partition_parameters(model)


def test_a_model_without_layers_is_refused(build_model: Callable[..., PreTrainedModel]) -> None:
    model = build_model()
    model.model.layers = torch.nn.Identity()
    with pytest.raises(UserError, match="layers"):
        decoder_layers(model)
