from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.optim.muon import (
    Muon,
    Scale,
    build_muon,
    expected_update_norm,
    muon_step,
    scale_factor,
)
from wrinklefree.optim.newton_schulz import Coefficients
from wrinklefree.optim.partition import matrices
from wrinklefree.optim.settings import MuonSettings

SHAPES = [(5, 5), (63, 17), (17, 63), (1, 9)]
ADJUSTMENT = {"original": "original", "match_rms": "match_rms_adamw"}


def gradients(shape: tuple[int, int], steps: int, dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype) for _ in range(steps)]


def trajectory(optimizer: torch.optim.Optimizer, grads: list[Tensor]) -> list[Tensor]:
    (parameter,) = optimizer.param_groups[0]["params"]
    seen = []
    for gradient in grads:
        parameter.grad = gradient.clone()
        optimizer.step()
        seen.append(parameter.detach().clone())
    return seen


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", ["original", "match_rms"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_equals_the_muon_of_torch_step_by_step(
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int],
    scale: Scale,
    nesterov: bool,
    weight_decay: float,
) -> None:
    # The Newton-Schulz of torch rounds to bfloat16; without that both can be compared in float64.
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)
    start = torch.randn(shape, dtype=torch.float64)
    grads = gradients(shape, 4, torch.float64)
    options = {"lr": 0.02, "momentum": 0.9, "nesterov": nesterov, "weight_decay": weight_decay}
    ours = Muon([nn.Parameter(start.clone())], scale=scale, compute_dtype=torch.float64, **options)
    oracle = torch.optim.Muon(
        [nn.Parameter(start.clone())], adjust_lr_fn=ADJUSTMENT[scale], **options
    )
    for mine, theirs in zip(trajectory(ours, grads), trajectory(oracle, grads), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_float32_is_within_the_rounding_of_the_muon_of_torch() -> None:
    start, grads = torch.randn(31, 45), gradients((31, 45), 3, torch.float32)
    ours = Muon([nn.Parameter(start.clone())], lr=0.02, scale="match_rms", weight_decay=0.1)
    oracle = torch.optim.Muon(
        [nn.Parameter(start.clone())], lr=0.02, adjust_lr_fn="match_rms_adamw", weight_decay=0.1
    )
    mine, theirs = trajectory(ours, grads)[-1], trajectory(oracle, grads)[-1]
    assert (mine - theirs).norm() < 0.02 * (theirs - start).norm()


def test_bfloat16_is_the_muon_of_torch() -> None:
    start, grads = torch.randn(31, 45), gradients((31, 45), 3, torch.float32)
    options = {"lr": 0.02, "weight_decay": 0.1}
    compute = {"scale": "match_rms", "compute_dtype": torch.bfloat16}
    ours = Muon([nn.Parameter(start.clone())], **compute, **options)
    oracle = torch.optim.Muon(
        [nn.Parameter(start.clone())], adjust_lr_fn="match_rms_adamw", **options
    )
    mine, theirs = trajectory(ours, grads)[-1], trajectory(oracle, grads)[-1]
    assert (mine - theirs).norm() < 2e-3 * (theirs - start).norm()


@pytest.mark.parametrize(
    ("shape", "rows"), [((3, 8, 5), None), ((3, 8, 5), [5, 3]), ((9, 4), [4, 4, 1])]
)
def test_stacks_and_fused_rows_step_as_if_each_matrix_were_alone(
    shape: tuple[int, ...], rows: list[int] | None
) -> None:
    start, grads = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
    options = {"lr": 0.02, "scale": "original", "weight_decay": 0.1}
    whole = Muon([{"params": [nn.Parameter(start.clone())], "rows": rows}], **options)
    (after,) = trajectory(whole, grads)[-1:]
    pieces = zip(*(matrices(tensor, rows) for tensor in (start, after, *grads)), strict=True)
    for alone, piece, *its_grads in pieces:
        (expected,) = trajectory(Muon([nn.Parameter(alone.clone())], **options), its_grads)[-1:]
        assert torch.equal(piece, expected)
    parameter = nn.Parameter(start)
    norms = [expected_update_norm(*piece.shape, "original") for piece in matrices(start, rows)]
    assert whole.expected_update_norm(parameter, whole.param_groups[0]) == pytest.approx(
        math.hypot(*norms)
    )


def test_an_expert_without_tokens_in_a_step_moves_on_by_its_momentum() -> None:
    stack = nn.Parameter(torch.zeros(2, 4, 5))
    optimizer = Muon([stack], lr=0.1, scale="original")
    stack.grad = torch.randn(2, 4, 5)
    optimizer.step()
    before = stack.detach().clone()
    stack.grad[1] = 0.0
    optimizer.step()
    assert not torch.equal(stack[1], before[1]) and stack.isfinite().all()


@pytest.mark.parametrize("nesterov", [True, False])
def test_the_step_leaves_gradient_and_what_is_orthogonalized_alone(nesterov: bool) -> None:
    gradient, momentum = torch.randn(4, 6), torch.randn(4, 6)
    copy, moved = gradient.clone(), torch.lerp(momentum, gradient, 0.1)
    muon_step(gradient, momentum, momentum=0.9, nesterov=nesterov)
    assert torch.equal(gradient, copy) and torch.equal(momentum, moved)


@pytest.mark.parametrize("shape", [(96, 96), (128, 32), (32, 128)])
@pytest.mark.parametrize("scale", ["original", "match_rms"])
@pytest.mark.parametrize(("coefficients", "off"), [("classic", 0.12), ("polar_express", 0.04)])
def test_an_update_is_as_large_as_expected(
    shape: tuple[int, int], scale: Scale, coefficients: Coefficients, off: float
) -> None:
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.grad = torch.randn(shape)
    muon = Muon([parameter], lr=1.0, scale=scale, coefficients=coefficients)
    muon.step()
    expected = muon.expected_update_norm(parameter, muon.param_groups[0])
    assert parameter.norm().item() == pytest.approx(expected, rel=off)


def test_match_rms_gives_each_shape_the_same_rms() -> None:
    for rows, columns in [(64, 64), (256, 16), (16, 256)]:
        rms = expected_update_norm(rows, columns, "match_rms") / math.sqrt(rows * columns)
        assert rms == pytest.approx(0.18)
    assert scale_factor(16, 64, "original") == 1.0
    assert scale_factor(64, 16, "original") == 2.0


def test_a_parameter_without_gradient_is_left_alone() -> None:
    still, moving = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))
    moving.grad = torch.randn(3, 4)
    optimizer = Muon([still, moving], lr=0.1, scale="original", weight_decay=0.5)
    optimizer.step()
    assert torch.equal(still, torch.ones(3, 4))
    assert not torch.equal(moving, torch.ones(3, 4))


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4, 5)])
def test_refuses_what_is_no_matrix(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="matrices"):
        Muon([nn.Parameter(torch.zeros(shape))], lr=0.1, scale="original")


def test_returns_the_loss_of_a_closure() -> None:
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([parameter], lr=0.1, scale="original")

    def closure() -> float:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert parameter.sum() < 4.0


BASE = {
    "lr": 2e-3,
    "adamw_lr": 3e-4,
    "scale": "original",
    "weight_decay": 0.1,
    "allow_unusual_lr": True,
    "compute": "float32",
}


def after_two_steps(model: PreTrainedModel, settings: MuonSettings) -> dict[str, Tensor]:
    optimizer = build_muon(model, settings)
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("change", "moves_matrices", "moves_others"),
    [
        ({"lr": 1e-3}, True, False),
        ({"scale": "match_rms"}, True, False),
        ({"momentum": 0.5}, True, False),
        ({"nesterov": False}, True, False),
        ({"coefficients": "polar_express"}, True, False),
        ({"compute": "bfloat16"}, True, False),
        ({"weight_decay": 0.0}, True, False),
        ({"adamw_lr": 1e-4}, False, True),
        ({"adamw_betas": [0.8, 0.95]}, False, True),
        ({"adamw_betas": [0.9, 0.5]}, False, True),
        ({"adamw_eps": 0.1}, False, True),
    ],
)
def test_each_setting_changes_its_own_parameters(
    build_model: Callable[..., PreTrainedModel],
    change: dict[str, object],
    moves_matrices: bool,
    moves_others: bool,
) -> None:
    plain = after_two_steps(build_model(), MuonSettings(**BASE))
    changed = after_two_steps(build_model(), MuonSettings(**BASE | change))
    for name, parameter in plain.items():
        matrix = ".layers." in name and parameter.ndim == 2
        expected = moves_matrices if matrix else moves_others
        assert torch.equal(parameter, changed[name]) is not expected, name


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_what_matrices_are_orthogonalized_in_is_a_fact_and_in_the_state(
    build_model: Callable[..., PreTrainedModel], compute: str
) -> None:
    optimizer = build_muon(build_model(), MuonSettings.model_validate(BASE | {"compute": compute}))
    assert optimizer.facts() == {"orthogonalized_in": compute}
    # So a checkpoint of another type is one of another training.
    assert compute in [group.get("compute") for group in optimizer.state_dict()["param_groups"]]
