from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from wrinklefree.optim.adamw import AdamW
from wrinklefree.optim.combined import CombinedOptimizer
from wrinklefree.optim.muon import Muon
from wrinklefree.stability import movement
from wrinklefree.stability.movement import FrozenParameterError, MovementCheck, MovementReport


class Net(nn.Module):
    """An embedding, a norm with gain, a hidden matrix and a head that the loss may leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 24)
        self.norm = nn.RMSNorm(24)
        self.hidden = nn.Linear(24, 24, bias=False)
        nn.init.normal_(self.hidden.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.hidden(self.norm(self.embedding(tokens)))


def muon_and_adamw(model: Net, *, lr: float = 1e-3) -> CombinedOptimizer:
    return CombinedOptimizer(
        [
            Muon([{"params": [model.hidden.weight], "kind": "matrix"}], lr=lr, scale="match_rms"),
            AdamW(
                [
                    {"params": [model.embedding.weight], "kind": "embedding"},
                    {"params": [model.norm.weight], "kind": "norm"},
                ],
                lr=lr,
                weight_decay=0.0,
            ),
        ]
    )


def train(
    model: Net,
    optimizer: CombinedOptimizer,
    steps: int = 5,
    loss_of: Callable[[Tensor], Tensor] = lambda output: output.square().sum(),
) -> MovementReport:
    check = MovementCheck(model, optimizer, steps=steps)
    generator = torch.Generator().manual_seed(2)
    for step in range(steps):
        assert not check.due
        tokens = torch.randint(40, (3, 50), generator=generator)
        optimizer.zero_grad()
        loss_of(model(tokens).float()).backward()
        optimizer.step()
        check.observe()
        assert check.observed == step + 1
    assert check.due
    return check.check()


def reasons(error: FrozenParameterError) -> dict[str, str]:
    return dict(re.findall(r"^  (\S+): (.*)$", str(error), flags=re.MULTILINE))


def frozen(model: Net, optimizer: CombinedOptimizer, **options: object) -> dict[str, str]:
    with pytest.raises(FrozenParameterError) as caught:
        train(model, optimizer, **options)
    return reasons(caught.value)


def test_healthy_training_passes_and_reports_each_parameter() -> None:
    model = Net()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    report = train(model, muon_and_adamw(model))
    assert report.steps == 5
    for moved in report.parameters:
        change = model.get_parameter(moved.name).detach() - before[moved.name]
        assert moved.moved == pytest.approx(change.norm().item(), rel=1e-5)
        assert moved.frozen_because is None and moved.unchanged < 0.5
    deviation = (model.norm.weight - 1).abs().max().item()
    assert report.norm_deviation == pytest.approx(deviation) and deviation > 1e-3
    ratios = [moved.moved / moved.predicted for moved in report.parameters]
    assert report.metrics()["movement/smallest_ratio"] == min(ratios) > 0
    assert report.metrics()["movement/largest_ratio"] == max(ratios) <= 1.2


def steady(
    model: Net, gradients: dict[str, Tensor], optimizer: CombinedOptimizer
) -> MovementReport:
    """Ten steps along the same gradients, at a falling rate."""
    check = MovementCheck(model, optimizer)
    for step in range(10):
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name].clone()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 / (step + 1)
        optimizer.step()
        check.observe()
    return check.check()


def test_steady_gradients_move_parameters_as_far_as_predicted() -> None:
    model = Net()
    gradients = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
    report = steady(model, gradients, muon_and_adamw(model))
    rates = sum(1e-3 / (step + 1) for step in range(10))
    for moved in report.parameters:
        assert moved.moved == pytest.approx(moved.predicted, rel=0.15)
        if moved.name == "hidden.weight":
            assert moved.predicted == pytest.approx(0.9 * rates * 0.2 * math.sqrt(24 * 24))


def test_large_parameters_are_sampled_and_their_norm_is_about_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(movement, "WATCHED_ENTRIES", 300)
    model = Net()
    before = model.embedding.weight.detach().clone()
    gradients = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
    report = steady(model, gradients, muon_and_adamw(model))
    (moved,) = [m for m in report.parameters if m.name == "embedding.weight"]
    assert moved.moved == pytest.approx((model.embedding.weight - before).norm().item(), rel=0.1)


def test_sampling_leaves_the_global_random_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movement, "WATCHED_ENTRIES", 10)
    model = Net()
    state = torch.get_rng_state()
    MovementCheck(model, muon_and_adamw(model))
    assert torch.equal(torch.get_rng_state(), state)


def test_bfloat16_norms_under_small_updates_are_frozen_by_precision() -> None:
    model = Net().bfloat16()
    found = frozen(model, muon_and_adamw(model, lr=1e-4))
    assert "precision: bfloat16" in found["norm.weight"]


def test_bfloat16_matrices_that_lose_part_of_their_updates_are_frozen_too() -> None:
    model = Net().bfloat16()
    found = frozen(model, muon_and_adamw(model, lr=3e-5), steps=3)
    assert "precision: bfloat16" in found["hidden.weight"]


def test_float32_under_updates_below_its_spacing_is_frozen_by_precision() -> None:
    model = Net()
    found = frozen(model, muon_and_adamw(model, lr=1e-9))
    assert set(found) == {"norm.weight"}
    assert "precision: float32" in found["norm.weight"]


def test_a_parameter_that_requires_no_gradient_is_frozen() -> None:
    model = Net()
    model.hidden.weight.requires_grad_(False)
    found = frozen(model, muon_and_adamw(model))
    assert found == {"hidden.weight": "requires_grad is false"}


def test_a_parameter_outside_the_optimizer_is_frozen() -> None:
    model = Net()
    trained = {"params": [model.norm.weight, model.hidden.weight], "kind": "matrix"}
    optimizer = CombinedOptimizer([AdamW([trained], lr=1e-3)])
    assert frozen(model, optimizer) == {"embedding.weight": "it is not in the optimizer"}


@pytest.mark.parametrize(("index", "names"), [(0, ["hidden"]), (1, ["embedding"]), (2, ["norm"])])
def test_a_rate_of_zero_freezes_its_group(index: int, names: Iterable[str]) -> None:
    model = Net()
    optimizer = muon_and_adamw(model)
    optimizer.param_groups[index]["lr"] = 0.0
    reason = "its learning rate was zero in every step"
    assert frozen(model, optimizer) == {f"{name}.weight": reason for name in names}


def test_a_parameter_that_the_loss_does_not_reach_is_frozen() -> None:
    model = Net()
    model.forward = lambda tokens: model.norm(model.embedding(tokens))
    found = frozen(model, muon_and_adamw(model))
    assert list(found) == ["hidden.weight"] and "no gradient" in found["hidden.weight"]


def test_gradients_that_are_always_zero_freeze() -> None:
    model = Net()
    with torch.no_grad():
        model.norm.weight.zero_()
    found = frozen(model, muon_and_adamw(model))
    assert "gradient was zero" in found["hidden.weight"]


def test_a_step_that_is_never_applied_freezes_everything() -> None:
    model = Net()
    optimizer = muon_and_adamw(model)
    optimizer.step = lambda: None
    found = frozen(model, optimizer)
    assert set(found) == {"embedding.weight", "norm.weight", "hidden.weight"}
    assert all("no step was applied" in reason for reason in found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_without_tokens_are_not_frozen_but_a_stack_without_any_is(
    dtype: torch.dtype,
) -> None:
    stack = nn.Parameter(torch.full((4, 3, 3), 0.01, dtype=dtype))
    model = nn.ParameterDict({"experts": stack})
    for used, message in ((1, None), (0, "gradient was zero")):
        group = {"params": [stack], "kind": "expert_stack"}
        optimizer = CombinedOptimizer([AdamW([group], lr=1e-3, weight_decay=0.0)])
        check = MovementCheck(model, optimizer)
        for _ in range(3):
            stack.grad = torch.zeros_like(stack)
            stack.grad[:used] = 1.0
            optimizer.step()
            check.observe()
        if message:
            with pytest.raises(FrozenParameterError, match=message):
                check.check()
        else:
            (moved,) = check.check().parameters
            assert moved.unchanged == 0.75


def test_groups_replaced_by_a_resumed_optimizer_are_followed() -> None:
    model = Net()
    optimizer = muon_and_adamw(model)
    check = MovementCheck(model, optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    check.observe()
    with pytest.raises(FrozenParameterError, match="learning rate was zero"):
        check.check()
