from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.optim import apollo
from wrinklefree.optim.apollo import MINI_SCALE, Apollo, build_apollo, build_apollo_mini, projection
from wrinklefree.optim.settings import ApolloMiniSettings, ApolloSettings

SHAPES = [(5, 5), (31, 17), (17, 31), (1, 9)]
GROUP = {"lr": 0.02, "weight_decay": 0.3, "rows": None, "betas": (0.8, 0.9), "eps": 1e-8}
CHANNELS = {"rank": 4, "per_channel": True, "scale": 1.0}
MINI = {"rank": 1, "per_channel": False, "scale": MINI_SCALE}


def reference(
    start: Tensor,
    grads: list[Tensor],
    projections: list[Tensor],
    *,
    per_channel: bool,
    scale: float,
) -> Tensor:
    """Algorithm 1 of arXiv 2412.05270 in float64, for a weight of m <= n; channel by channel."""
    weight = start.double()
    m = v = 0.0
    last = 0.0
    for t, (gradient, p) in enumerate(zip(grads, projections, strict=True), start=1):
        r = p.double() @ gradient.double()
        m, v = 0.8 * m + 0.2 * r, 0.9 * v + 0.1 * r**2
        adapted = (m / (1 - 0.8**t)) / ((v / (1 - 0.9**t)).sqrt() + 1e-8)
        if per_channel:
            columns = range(r.shape[1])
            factors = torch.stack([adapted[:, j].norm() / r[:, j].norm() for j in columns])
        else:
            factors = adapted.norm() / r.norm()
        update = scale * gradient.double() * factors
        if last and update.norm() > 1.01 * last:
            update = update / update.norm() * 1.01 * last
        last = update.norm().item()
        weight = weight - 0.02 * 0.3 * weight - 0.02 * update
    return weight


@pytest.mark.parametrize("choices", [CHANNELS, MINI], ids=["channels", "mini"])
@pytest.mark.parametrize("shape", SHAPES)
def test_follows_the_paper(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], choices: dict[str, Any]
) -> None:
    monkeypatch.setattr(apollo, "REFRESH_STEPS", 2)
    drawn: list[Tensor] = []

    def recorded(*arguments: Any) -> Tensor:
        drawn.append(projection(*arguments))
        return drawn[-1].double()

    monkeypatch.setattr(apollo, "projection", recorded)
    start = torch.randn(shape, dtype=torch.float64)
    grads = [torch.randn(shape, dtype=torch.float64) * size for size in (1.0, 0.5, 3.0, 1.0, 2.0)]
    parameter = nn.Parameter(start.clone())
    optimizer = Apollo([{"params": [parameter], **GROUP}], **choices)
    for gradient in grads:
        parameter.grad = gradient
        optimizer.step()
    assert [torch.equal(a, b) for a, b in itertools.pairwise(drawn)] == [
        True,
        False,
        True,
        False,
    ]
    tall = shape[0] > shape[1]
    wide = [tensor.T if tall else tensor for tensor in (start, *grads)]
    choices = {key: choices[key] for key in ("per_channel", "scale")}
    expected = reference(wide[0], wide[1:], drawn, **choices)
    torch.testing.assert_close(
        parameter.detach(), expected.T if tall else expected, rtol=1e-9, atol=1e-10
    )


def test_a_projection_keeps_norms_on_average_and_depends_on_its_seed_alone() -> None:
    device = torch.device("cpu")
    drawn = projection(64, 3000, 1, device)
    assert drawn.shape == (64, 3000)
    assert drawn.var().item() == pytest.approx(1 / 64, rel=0.02)
    assert torch.equal(drawn, projection(64, 3000, 1, device))
    assert not torch.equal(drawn, projection(64, 3000, 2, device))


def test_each_matrix_has_a_projection_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(
        apollo, "projection", lambda r, d, seed, _: seeds.append(seed) or torch.ones(r, d)
    )
    stack, matrix = nn.Parameter(torch.zeros(3, 4, 5)), nn.Parameter(torch.zeros(4, 5))
    optimizer = Apollo([{"params": [stack, matrix], **GROUP}], **CHANNELS)
    for _ in range(201):
        stack.grad, matrix.grad = torch.ones(3, 4, 5), torch.ones(4, 5)
        optimizer.step()
    assert len(set(seeds)) == 8 and seeds[:4] == seeds[4:8]


def test_a_steady_gradient_of_full_rank_steps_as_adamw_does() -> None:
    """With as many rows as the matrix has, a channel is stretched as a whole."""
    gradient = torch.randn(6, 9).sign()
    ours, theirs = nn.Parameter(torch.zeros(6, 9)), nn.Parameter(torch.zeros(6, 9))
    optimizer = Apollo([{"params": [ours], **GROUP, "weight_decay": 0.0}], **CHANNELS | {"rank": 6})
    adamw = torch.optim.AdamW([theirs], lr=0.02, weight_decay=0.0)
    for _ in range(3):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        adamw.step()
    cosine = torch.nn.functional.cosine_similarity(ours, theirs, dim=0)
    torch.testing.assert_close(cosine, torch.ones(9))


def test_an_expert_without_tokens_is_not_held_back_for_ever() -> None:
    stack = nn.Parameter(torch.zeros(2, 6, 5))
    optimizer = Apollo([{"params": [stack], **GROUP, "weight_decay": 0.0}], **CHANNELS)
    for step in range(3):
        stack.grad = torch.randn(2, 6, 5)
        if step < 2:
            stack.grad[1] = 0.0
        optimizer.step()
    assert stack.isfinite().all() and stack[1].norm() > 0.01


def after_two_steps(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    torch.manual_seed(1)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return dict(model.named_parameters())


@pytest.mark.parametrize(
    ("change", "hidden", "others"),
    [
        ({"rank": 2}, True, False),
        ({"lr": 2e-3}, True, False),
        ({"weight_decay": 0.5}, True, False),
        ({"adamw_lr": 2e-3}, False, True),
        ({"adamw_betas": [0.5, 0.95]}, True, True),
        ({"adamw_eps": 0.1}, True, True),
    ],
)
def test_each_setting_changes_its_own_parameters(
    build_model: Callable[..., PreTrainedModel],
    change: dict[str, object],
    hidden: bool,
    others: bool,
) -> None:
    results = []
    for settings in (ApolloSettings(), ApolloSettings(**change)):
        model = build_model()
        results.append(after_two_steps(model, build_apollo(model, settings)))
    for name, parameter in results[0].items():
        expected = hidden if ".layers." in name and parameter.ndim == 2 else others
        assert torch.equal(parameter, results[1][name]) is not expected, name


def test_mini_keeps_two_numbers_for_each_channel(
    build_model: Callable[..., PreTrainedModel],
) -> None:
    model = build_model()
    optimizer = build_apollo_mini(model, ApolloMiniSettings())
    after_two_steps(model, optimizer)
    (group,) = [group for group in optimizer.param_groups if group["kind"] == "matrix"]
    for parameter in group["params"]:
        entries = sum(value.numel() for value in optimizer.state[parameter].values())
        assert entries == 2 * max(parameter.shape) + 2  # and a count of steps, and a norm


@pytest.mark.parametrize("choices", [CHANNELS, MINI], ids=["channels", "mini"])
@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_a_direction_goes_by_the_sizes_of_earlier_gradients_and_not_by_their_mean(
    shape: tuple[int, int], choices: dict[str, Any]
) -> None:
    first, second = (nn.Parameter(torch.randn(shape)) for _ in range(2))
    optimizer = Apollo([{"params": [first, second], **GROUP, **choices}])
    # Their sizes rise from channel to channel, and each update is smaller than the one before.
    sizes = torch.logspace(-2, 0, 8)
    uneven = sizes if shape[1] == 8 else sizes[:, None]
    for step in range(30):
        for parameter in (first, second):
            parameter.grad = torch.randn(shape) * uneven * 0.9**step
        optimizer.step()
    state = {name: value.clone() for name, value in optimizer.state[second].items()}
    gradient = torch.randn(shape) * 1e-9
    found = optimizer.direction(second, gradient, optimizer.param_groups[0])
    seed = zlib.crc32(repr((0, 1, 0)).encode())
    wide = gradient if shape[0] < shape[1] else gradient.T
    rank = min(choices["rank"], 5)
    projected = projection(rank, 5, seed, gradient.device) @ wide
    square = 0.9 * state["square"].view(rank, 8) + 0.1 * projected**2
    stretched = projected / ((square / (1 - 0.9**31)).sqrt() + 1e-8)
    across = 0 if choices["per_channel"] else (0, 1)
    factor = choices["scale"] * stretched.norm(dim=across) / projected.norm(dim=across)
    expected = wide * factor
    torch.testing.assert_close(found, expected if shape[0] < shape[1] else expected.T)
    assert all(torch.equal(optimizer.state[second][name], state[name]) for name in state)
