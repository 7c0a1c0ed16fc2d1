from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from transformers import PreTrainedModel

from wrinklefree.optim.build import OPTIMIZERS, build_optimizer
from wrinklefree.optim.combined import CombinedOptimizer
from wrinklefree.optim.settings import (
    AdamWSettings,
    MuonClipSettings,
    MuonSettings,
    OptimizerSettings,
)

SETTINGS = {
    name: OptimizerSettings(
        name=name,
        adamw=AdamWSettings(lr=1e-3, weight_decay=0.1),
        muon=MuonSettings(lr=2e-3, adamw_lr=3e-4, scale="original", weight_decay=0.1),
        muonclip=MuonClipSettings(lr=8e-4, adamw_lr=3e-4, qk_clip_threshold=0.2),
    )
    for name in ("adamw", "muon", "muonclip")
}


def train(
    model: PreTrainedModel, optimizer: Optimizer, tokens_BT: Tensor, steps: range
) -> list[float]:
    losses = []
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] / (step + 1)
        rolled = tokens_BT.roll(step, dims=1)
        loss = model(input_ids=rolled, labels=rolled, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_every_name_has_settings_here() -> None:
    assert set(SETTINGS) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_resumed_training_is_bit_identical(
    build_model: Callable[..., PreTrainedModel], tokens_BT: Tensor, name: str
) -> None:
    whole = build_model()
    whole_losses = train(whole, build_optimizer(whole, SETTINGS[name]), tokens_BT, range(5))

    first = build_model()
    optimizer = build_optimizer(first, SETTINGS[name])
    losses = train(first, optimizer, tokens_BT, range(2))
    saved = through_a_file({"model": first.state_dict(), "optimizer": optimizer.state_dict()})

    second = build_model(seed=1)
    second.load_state_dict(saved["model"])
    optimizer = build_optimizer(second, SETTINGS[name])
    optimizer.load_state_dict(saved["optimizer"])
    losses += train(second, optimizer, tokens_BT, range(2, 5))

    assert losses == whole_losses
    for (key, expected), value in zip(whole.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(expected, value), key


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_resuming_without_the_state_differs(
    build_model: Callable[..., PreTrainedModel], tokens_BT: Tensor, name: str
) -> None:
    whole, forgetful = build_model(), build_model()
    train(whole, build_optimizer(whole, SETTINGS[name]), tokens_BT, range(4))
    for steps in (range(2), range(2, 4)):
        train(forgetful, build_optimizer(forgetful, SETTINGS[name]), tokens_BT, steps)
    pairs = zip(whole.parameters(), forgetful.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_groups_have_a_kind_and_their_peak_rate(
    build_model: Callable[..., PreTrainedModel], name: str
) -> None:
    settings = SETTINGS[name].chosen
    groups = build_optimizer(build_model(), SETTINGS[name]).param_groups
    assert [group["kind"] for group in groups] == ["matrix", "other"]
    other = settings.lr if isinstance(settings, AdamWSettings) else settings.adamw_lr
    for group, rate in zip(groups, (settings.lr, other), strict=True):
        assert group["lr"] == group["initial_lr"] == rate


@pytest.mark.parametrize("kind", ["matrix", "other"])
def test_the_rate_of_a_group_is_obeyed_also_after_loading(
    build_model: Callable[..., PreTrainedModel], kind: str
) -> None:
    model = build_model()
    optimizer = build_optimizer(model, SETTINGS["muon"])
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        if group["kind"] == kind:
            group["lr"] = 0.0
    before = {id(p): p.detach().clone() for p in model.parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for group in optimizer.param_groups:
        still = all(torch.equal(p, before[id(p)]) for p in group["params"])
        assert still == (group["kind"] == kind)


def test_parts_step_in_order_and_then_the_hook() -> None:
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    first.grad, second.grad = torch.ones(1), torch.ones(1)
    seen = []
    optimizer = CombinedOptimizer(
        [SGD([first], lr=0.25), SGD([second], lr=0.5)],
        after_step=lambda: seen.append((first.item(), second.item())),
    )
    optimizer.step()
    assert seen == [(0.75, 0.5)]


def test_a_parameter_in_two_parts_is_refused() -> None:
    parameter = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="more than one"):
        CombinedOptimizer([SGD([parameter], lr=0.1), SGD([parameter], lr=0.1)])
