from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.optim.muon import Scale, scale_factor
from wrinklefree.optim.newton_schulz import orthogonalize
from wrinklefree.optim.normuon import NorMuon, build_normuon, normuon_step
from wrinklefree.optim.settings import NorMuonSettings

SHAPES = [(5, 5), (63, 17), (17, 63), (1, 9)]


def reference(
    start: Tensor, grads: list[Tensor], *, lr: float, decay: float, scale: Scale, nesterov: bool
) -> Tensor:
    """Algorithm 1 of arXiv 2510.05491, row by row in float64, with Muon's norm kept."""
    weight = start.double()
    momentum, square = torch.zeros_like(weight), [0.0] * len(weight)
    for gradient in grads:
        momentum = 0.9 * momentum + 0.1 * gradient.double()
        direction = 0.1 * gradient.double() + 0.9 * momentum if nesterov else momentum
        update = orthogonalize(direction, torch.float64)
        rows = []
        for index, row in enumerate(update):
            square[index] = 0.8 * square[index] + 0.2 * float((row**2).sum()) / len(row)
            rows.append(row / (square[index] ** 0.5 + 1e-8))
        normalised = torch.stack(rows)
        normalised = normalised * (update.norm() / normalised.norm())
        weight = weight - lr * decay * weight
        weight = weight - lr * scale_factor(*start.shape, scale) * normalised
    return weight


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", ["original", "match_rms"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_follows_the_paper(shape: tuple[int, int], scale: Scale, nesterov: bool) -> None:
    start = torch.randn(shape, dtype=torch.float64)
    grads = [torch.randn(shape, dtype=torch.float64) for _ in range(4)]
    parameter = nn.Parameter(start.clone())
    choices = {"scale": scale, "nesterov": nesterov, "compute_dtype": torch.float64}
    optimizer = NorMuon(
        [parameter], lr=0.02, momentum=0.9, row_decay=0.8, weight_decay=0.3, **choices
    )
    for gradient in grads:
        parameter.grad = gradient
        optimizer.step()
    expected = reference(start, grads, lr=0.02, decay=0.3, scale=scale, nesterov=nesterov)
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-10, atol=1e-12)


def first_update(gradient: Tensor) -> Tensor:
    zeros, rows = torch.zeros_like(gradient), torch.zeros(len(gradient), 1)
    return normuon_step(gradient, zeros, rows, momentum=0.95, nesterov=False, row_decay=0.95)


def test_rows_of_an_update_have_one_norm_where_those_of_muon_differ() -> None:
    gradient = torch.randn(40, 10) * torch.linspace(0.01, 1.0, 40)[:, None]
    muon = orthogonalize(gradient).norm(dim=1)
    ours = first_update(gradient)
    assert muon.max() > 3 * muon.min()
    norms = ours.norm(dim=1)
    torch.testing.assert_close(norms, norms.mean().expand(40), rtol=1e-3, atol=0)
    assert ours.norm().item() == pytest.approx(muon.norm().item(), rel=1e-4)


def test_a_zero_gradient_moves_nothing_and_divides_nothing() -> None:
    assert not first_update(torch.zeros(4, 3)).any()


@pytest.mark.parametrize(
    "change", [{"nesterov": True}, {"row_decay": 0.5}, {"coefficients": "polar_express"}]
)
def test_each_setting_changes_the_matrices(
    build_model: Callable[..., PreTrainedModel], change: dict[str, object]
) -> None:
    results = []
    for settings in (NorMuonSettings(), NorMuonSettings(**change)):
        model = build_model()
        optimizer = build_normuon(model, settings)
        torch.manual_seed(1)
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        results.append(dict(model.named_parameters()))
    for name, parameter in results[0].items():
        hidden = ".layers." in name and parameter.ndim == 2
        assert torch.equal(parameter, results[1][name]) is not hidden, name


def test_a_direction_goes_by_the_sizes_of_earlier_rows() -> None:
    parameter = nn.Parameter(torch.randn(6, 9, dtype=torch.float64))
    settings = {"lr": 0.02, "scale": "original", "row_decay": 0.8, "nesterov": True}
    optimizer = NorMuon([parameter], compute_dtype=torch.float64, **settings)
    for _ in range(5):
        parameter.grad = torch.randn(6, 9, dtype=torch.float64)
        parameter.grad[1:] += 3 * parameter.grad[0]  # so that the rows' sizes differ
        optimizer.step()
    square = optimizer.state[parameter]["row_square"].clone()
    gradient = torch.randn(6, 9, dtype=torch.float64)
    found = optimizer.direction(parameter, gradient, optimizer.param_groups[0])
    update = orthogonalize(gradient, torch.float64)
    moved = 0.8 * square + 0.2 * update.square().mean(1, keepdim=True)
    expected = update / moved.sqrt()
    torch.testing.assert_close(found, expected * update.norm() / expected.norm())
    assert torch.equal(optimizer.state[parameter]["row_square"], square)
