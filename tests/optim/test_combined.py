from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from wrinklefree.optim.adamw import AdamW
from wrinklefree.optim.build import OPTIMIZERS, build_optimizer
from wrinklefree.optim.combined import CombinedOptimizer
from wrinklefree.optim.partition import HIDDEN
from wrinklefree.optim.settings import AdamWSettings, OptimizerSettings

Build = Callable[..., PreTrainedModel]
BLOCKS: dict[str, dict[str, object]] = {
    "adamw": {"lr": 1e-3, "weight_decay": 0.1},
    "muon": {"lr": 2e-3, "adamw_lr": 3e-4, "scale": "original", "weight_decay": 0.1},
    "muonclip": {"lr": 8e-4, "adamw_lr": 3e-4, "qk_clip_threshold": 0.2},
    "normuon": {"weight_decay": 0.1},
    "muon8bit": {"quantization": "dynamic"},
    "apollo": {"rank": 16, "weight_decay": 0.1},
    "apollo_mini": {},
    "adamw8bit": {"weight_decay": 0.1},
}
SETTINGS = {
    name: OptimizerSettings.model_validate({"name": name, name: block})
    for name, block in BLOCKS.items()
}


def train(
    model: PreTrainedModel, optimizer: Optimizer, tokens_BT: Tensor, steps: range
) -> list[float]:
    """Steps of two micro-batches each."""
    losses = []
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] / (step + 1)
        optimizer.zero_grad()
        rolled = tokens_BT.roll(step, dims=1)
        for rows_BT in (rolled[:1], rolled[1:]):
            loss = model(input_ids=rows_BT, labels=rows_BT, use_cache=False).loss
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
    return losses


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_every_name_has_settings_here() -> None:
    assert set(SETTINGS) == set(OPTIMIZERS)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_resumed_training_is_bit_identical(
    monkeypatch: pytest.MonkeyPatch, build_model: Build, tokens_BT: Tensor, family: str, name: str
) -> None:
    monkeypatch.setattr("wrinklefree.optim.apollo.REFRESH_STEPS", 3)
    whole = build_model(family)
    whole_losses = train(whole, build_optimizer(whole, SETTINGS[name]), tokens_BT, range(5))

    first = build_model(family)
    optimizer = build_optimizer(first, SETTINGS[name])
    losses = train(first, optimizer, tokens_BT, range(2))
    saved = through_a_file({"model": first.state_dict(), "optimizer": optimizer.state_dict()})

    second = build_model(family, seed=1)
    second.load_state_dict(saved["model"])
    optimizer = build_optimizer(second, SETTINGS[name])
    optimizer.load_state_dict(saved["optimizer"])
    losses += train(second, optimizer, tokens_BT, range(2, 5))

    assert losses == whole_losses
    for (key, expected), value in zip(whole.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(expected, value), key


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_state_keeps_the_types_and_shapes_of_its_layout_through_a_file(
    build_model: Build, tokens_BT: Tensor, name: str
) -> None:
    model = build_model("qwen3_moe")
    optimizer = build_optimizer(model, SETTINGS[name])
    train(model, optimizer, tokens_BT, range(1))
    saved = through_a_file(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    dtypes = set()
    for parameter in model.parameters():
        layout, state = optimizer.state_layout(parameter), optimizer.state[parameter]
        assert {key: (value.dtype, value.shape) for key, value in state.items()} == {
            key: (value.dtype, value.shape) for key, value in layout.items()
        }
        dtypes |= {value.dtype for value in state.values()}
    assert (dtypes == {torch.float32}) == (name not in ("muon8bit", "adamw8bit"))


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_resuming_without_the_state_differs(
    build_model: Build, tokens_BT: Tensor, name: str
) -> None:
    whole, forgetful = build_model(), build_model()
    train(whole, build_optimizer(whole, SETTINGS[name]), tokens_BT, range(4))
    for steps in (range(2), range(2, 4)):
        train(forgetful, build_optimizer(forgetful, SETTINGS[name]), tokens_BT, steps)
    pairs = zip(whole.parameters(), forgetful.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_groups_have_a_kind_and_their_peak_rate(build_model: Build, name: str) -> None:
    settings = SETTINGS[name].chosen
    groups = build_optimizer(build_model("qwen3_moe"), SETTINGS[name]).param_groups
    other = settings.lr if isinstance(settings, AdamWSettings) else settings.adamw_lr
    stacks = ["expert_stack"] * 2  # gate and up are fused, down is not
    kinds = ["matrix", *stacks, "router", "embedding", "norm", "other"]
    assert [group["kind"] for group in groups] == kinds
    for group in groups:
        hidden = group["kind"] in ("matrix", "expert_stack")
        assert group["lr"] == group["initial_lr"] == (settings.lr if hidden else other)


BETAS, DECAY = (0.8, 0.9), {"weight_decay": 0.2}
BESIDE = {"lr": 2e-3, "adamw_lr": 4e-4, "adamw_betas": BETAS, "adamw_eps": 1e-7, **DECAY}
OTHERS = {"lr": 4e-4, "betas": BETAS, "eps": 1e-7, "weight_decay": 0.0}
LIKE_MUON = {"momentum": 0.8, "coefficients": "polar_express", "scale": "original"}
LIKE_APOLLO = {"lr": 2e-3, **DECAY, "betas": BETAS, "eps": 1e-7}
ADAMW = {"lr": 3e-4, "betas": BETAS, "eps": 1e-7}
CHOSEN: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # Settings; what hidden matrices and all other parameters have of them.
    "adamw": ({**ADAMW, **DECAY}, {**ADAMW, **DECAY}, {**ADAMW, "weight_decay": 0.0}),
    "adamw8bit": ({**ADAMW, **DECAY}, {**ADAMW, **DECAY}, {**ADAMW, "weight_decay": 0.0}),
    **{
        name: (
            {**BESIDE, **LIKE_MUON, **own},
            {"lr": 2e-3, **DECAY, **LIKE_MUON, **own},
            OTHERS,
        )
        for name, own in {
            "muon": {"nesterov": False},
            "normuon": {"nesterov": True, "row_decay": 0.5},
            "muon8bit": {"nesterov": False, "quantization": "dynamic"},
        }.items()
    },
    "muonclip": (
        {**BESIDE, **LIKE_MUON, "qk_clip_threshold": 7.0},
        {"lr": 2e-3, **DECAY, **LIKE_MUON},
        OTHERS,
    ),
    "apollo": (
        {**BESIDE, "rank": 5},
        {**LIKE_APOLLO, "rank": 5, "per_channel": True, "scale": 1.0},
        OTHERS,
    ),
    "apollo_mini": (
        BESIDE,
        {**LIKE_APOLLO, "rank": 1, "per_channel": False, "scale": math.sqrt(128)},
        OTHERS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_an_update_without_momentum_is_by_the_state_that_was_loaded(
    build_model: Build, tokens_BT: Tensor, name: str
) -> None:
    first, second, third = (build_model() for _ in range(3))
    trained, loaded, fresh = (
        build_optimizer(one, SETTINGS[name]) for one in (first, second, third)
    )
    train(first, trained, tokens_BT, range(2))
    loaded.load_state_dict(through_a_file(trained.state_dict()))
    differs = False
    for mine, theirs, other in zip(
        *(one.parameters() for one in (first, second, third)), strict=True
    ):
        gradient = torch.randn_like(mine)
        expected, group = trained.update_of(mine, gradient), loaded._owner(theirs)[1]
        assert torch.equal(loaded.update_of(theirs, gradient), expected)
        differs |= not torch.equal(fresh.update_of(other, gradient), expected)
        group["lr"] *= 0.5
        torch.testing.assert_close(loaded.update_of(theirs, gradient), 0.5 * expected)
        group["lr"] *= 2
    assert differs


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_groups_have_what_the_settings_say(build_model: Build, name: str) -> None:
    chosen, hidden, others = CHOSEN[name]
    block = {key: list(value) if value is BETAS else value for key, value in chosen.items()}
    settings = OptimizerSettings.model_validate({"name": name, name: block})
    groups = build_optimizer(build_model(family="qwen3_moe"), settings).param_groups
    kinds = {group["kind"] for group in groups}
    assert {*HIDDEN, "router", "norm"} <= kinds
    for group in groups:
        expected = hidden if group["kind"] in HIDDEN else others
        if group["kind"] == "router" and name.startswith("adamw"):
            expected = hidden
        assert {key: group[key] for key in expected} == expected, group["kind"]


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_an_update_is_about_as_large_as_expected(build_model: Build, name: str) -> None:
    model = build_model("qwen3_moe")
    optimizer = build_optimizer(model, SETTINGS[name] if name != "muonclip" else SETTINGS["muon"])
    before = {id(parameter): parameter.detach().clone() for parameter in model.parameters()}
    torch.manual_seed(7)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    for group in optimizer.param_groups:
        group["weight_decay"], group["lr"] = 0.0, 1e-2
    optimizer.step()
    for group in optimizer.param_groups:
        moves = [(p.detach() - before[id(p)]).norm().item() / 1e-2 for p in group["params"]]
        expected = [optimizer.expected_update_norm(parameter) for parameter in group["params"]]
        assert math.hypot(*moves) == pytest.approx(math.hypot(*expected), rel=0.2), group["kind"]


def test_the_table_says_which_parameters_go_where(build_model: Build) -> None:
    model = build_model("qwen3_moe", tie_word_embeddings=False)
    lines = build_optimizer(model, SETTINGS["muon8bit"]).table()
    assert all(len(line) <= 80 for line in lines)
    table = [line.split() for line in lines]
    assert table[0] == ["parameters", "optimizer", "tensors", "entries"]
    assert table[1:4] == [
        ["matrix", "Muon8bit", "8", "12,288"],
        ["expert_stack", "Muon8bit", "4", "34,560"],
        ["router", "AdamW", "2", "480"],
    ]
    assert [row[:2] for row in table[4:-1]] == [
        [kind, "AdamW"] for kind in ("embedding", "head", "norm", "other")
    ]
    parameters = list(model.parameters())
    entries = sum(parameter.numel() for parameter in parameters)
    assert table[-1] == ["all", str(len(parameters)), f"{entries:,}"]


@pytest.mark.parametrize("kind", ["matrix", "norm"])
def test_the_rate_of_a_group_is_obeyed_also_after_loading(build_model: Build, kind: str) -> None:
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


def test_a_parameter_of_another_model_has_no_expected_update(build_model: Build) -> None:
    optimizer = build_optimizer(build_model(), SETTINGS["adamw"])
    with pytest.raises(KeyError, match="not in the optimizer"):
        optimizer.expected_update_norm(nn.Parameter(torch.ones(1)))


def test_parts_step_in_order_and_then_the_hook() -> None:
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    first.grad, second.grad = torch.ones(1), torch.ones(1)
    seen = []
    optimizer = CombinedOptimizer(
        [AdamW([first], lr=0.25), AdamW([second], lr=0.5)],
        after_step=lambda: seen.append((first.item(), second.item())),
    )
    optimizer.step()
    ((a, b),) = seen
    assert (a, b) == pytest.approx((0.75, 0.5), abs=0.02)


def test_a_parameter_in_two_parts_is_refused() -> None:
    parameter = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="more than one"):
        CombinedOptimizer([AdamW([parameter]), AdamW([parameter])])
