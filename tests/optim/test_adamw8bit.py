from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.kernels.momentum_8bit.reference import dynamic_values
from wrinklefree.optim.adamw import AdamW
from wrinklefree.optim.adamw8bit import AdamW8bit, build_adamw8bit
from wrinklefree.optim.settings import AdamWSettings

OPTIONS = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def rounded(tensor: Tensor, signed: bool) -> Tensor:
    """Each number to the nearest of the map, times the largest magnitude of its block."""
    values = dynamic_values(signed)[0 if signed else 1 :]
    blocks = []
    for block in tensor.flatten().split(2048):
        largest = block.abs().max()
        distances = (block[:, None] / largest - values).abs()
        blocks.append(values[distances.argmin(dim=1)] * largest)
    return torch.cat(blocks).view(tensor.shape)


def reference(start: Tensor, grads: list[Tensor]) -> Tensor:
    weight, mean, square = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t, gradient in enumerate(grads, start=1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.95 * square + 0.05 * gradient**2
        update = mean / (1 - 0.9**t) / ((square / (1 - 0.95**t)).sqrt() + 1e-8)
        weight = weight * (1 - 0.01 * 0.1) - 0.01 * update
        mean, square = rounded(mean, signed=True), rounded(square, signed=False)
    return weight


@pytest.mark.parametrize("shape", [(5, 5), (63, 65), (2, 40, 51)])
def test_is_adamw_whose_moments_are_rounded_after_every_step(shape: tuple[int, ...]) -> None:
    start, grads = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
    parameter = nn.Parameter(start.clone())
    optimizer = AdamW8bit([parameter], OPTIONS)
    for gradient in grads:
        parameter.grad = gradient
        optimizer.step()
    wrong = (parameter.detach() - reference(start, grads)).abs() > 1e-5
    # A number half way between two of the map may fall to either side.
    assert wrong.float().mean() < 0.002


@pytest.mark.parametrize(
    ("made", "tolerance"),
    [(lambda p: AdamW8bit([p], OPTIONS), 0.1), (lambda p: AdamW([p], **OPTIONS), 1e-5)],
    ids=["eight bits", "full precision"],
)
def test_a_direction_goes_by_the_running_size_of_each_entry(
    made: Callable[[nn.Parameter], Any], tolerance: float
) -> None:
    parameter = nn.Parameter(torch.randn(63, 65))
    optimizer, square = made(parameter), torch.zeros(63, 65)
    for step in range(3):
        parameter.grad = torch.randn(63, 65) + 2 * torch.randn(63, 65).sign() * 0.5**step
        square = 0.95 * square + 0.05 * parameter.grad**2
        optimizer.step()
    gradient = torch.randn(63, 65)
    expected = gradient / ((square / (1 - 0.95**3)).sqrt() + 1e-8)
    found = optimizer.direction(parameter, gradient, optimizer.param_groups[0])
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-6)
    assert (found - gradient).norm() > 0.2 * gradient.norm()


def test_stays_near_adamw_in_full_precision() -> None:
    start, target = torch.randn(48, 64), torch.randn(48, 64)
    ends = []
    for optimizer in (
        AdamW8bit([nn.Parameter(start.clone())], OPTIONS),
        AdamW([nn.Parameter(start.clone())], **OPTIONS),
    ):
        (parameter,) = optimizer.param_groups[0]["params"]
        generator = torch.Generator().manual_seed(1)
        for _ in range(50):
            noise = torch.randn(48, 64, generator=generator)
            parameter.grad = parameter.detach() - target + 0.1 * noise
            optimizer.step()
        ends.append(parameter.detach())
    assert (ends[0] - ends[1]).norm() < 0.05 * (ends[1] - start).norm()


def test_entries_far_below_the_largest_of_their_block_do_not_explode() -> None:
    """Rounded to zero, their mean square would leave eps alone in the denominator."""
    parameter = nn.Parameter(torch.zeros(2, 100))
    optimizer = AdamW8bit([parameter], OPTIONS | {"weight_decay": 0.0})
    for step in range(20):
        gradient = torch.full((2, 100), 1e-5)
        gradient[0, 0] = 1.0
        parameter.grad = gradient if step % 2 else gradient * 0
        optimizer.step()
    assert parameter.abs().max() < 20 * 0.01 * 1.5


def test_only_hidden_matrices_have_eight_bits(
    build_model: Callable[..., PreTrainedModel],
) -> None:
    model = build_model("qwen3_moe")
    optimizer = build_adamw8bit(model, AdamWSettings(weight_decay=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for group in optimizer.param_groups:
        hidden = group["kind"] in ("matrix", "expert_stack")
        assert group["weight_decay"] == (0.1 if hidden or group["kind"] == "router" else 0.0)
        for parameter in group["params"]:
            assert ("mean_codes" in optimizer.state[parameter]) == hidden
