from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.models.folder import load_model, save_model
from wrinklefree.models.future_heads import (
    attach_future_heads,
    future_heads,
    future_states,
    read_future_heads,
    write_future_heads,
)
from wrinklefree.models.transforms import ternary
from wrinklefree.optim.partition import partition_parameters

Tiny = Callable[..., PreTrainedModel]


def test_heads_lie_beside_the_model_which_loads_without_them(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path
) -> None:
    model = tiny()
    ternary().apply(model)
    attach_future_heads(model, 3)
    for head in future_heads(model):
        nn.init.normal_(head.get_parameter("weight"))
    weights = [head.get_parameter("weight").detach().clone() for head in future_heads(model)]
    write_future_heads(tmp_path, model)
    assert not future_heads(model)
    save_model(tmp_path, model, ternary(), tokenizer_folder)
    loaded, _ = load_model(tmp_path, "ternary")
    assert not future_heads(loaded)
    assert read_future_heads(tmp_path, loaded) == 3
    for head, weight in zip(future_heads(loaded), weights, strict=True):
        assert torch.equal(head.get_parameter("weight"), weight)
    attach_future_heads(loaded, 0)
    write_future_heads(tmp_path / "none", loaded)
    assert not (tmp_path / "none").exists()
    assert read_future_heads(tmp_path / "none", loaded) == 0


def test_new_heads_say_what_the_head_of_the_next_token_says(tiny: Tiny) -> None:
    model, hidden = tiny(), torch.randn(5, 64)
    attach_future_heads(model, 2)
    assert all(torch.equal(future_states(head, hidden), hidden) for head in future_heads(model))


def test_heads_of_another_model_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    other = tiny(hidden_size=32)
    attach_future_heads(other, 1)
    write_future_heads(tmp_path, other)
    with pytest.raises(UserError, match="its heads are not those of the model beside it"):
        read_future_heads(tmp_path, tiny())


def test_heads_are_no_hidden_matrices(tiny: Tiny) -> None:
    model = tiny()
    attach_future_heads(model, 1)
    (part,) = [part for part in partition_parameters(model) if part.kind == "other"]
    assert [id(parameter) for parameter in part.parameters] == [
        id(head.get_parameter("weight")) for head in future_heads(model)
    ]
