from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.optim.build import build_optimizer
from wrinklefree.optim.muon import Muon, muon_step, scale_factor
from wrinklefree.optim.muon8bit import Muon8bit
from wrinklefree.optim.settings import OptimizerSettings

Kind = Literal["linear", "dynamic"]
OPTIONS = {"lr": 0.02, "scale": "match_rms", "weight_decay": 0.1, "nesterov": True}


def rounded_linear(tensor: Tensor) -> Tensor:
    """Entry by entry: round(127 x / absmax) of blocks of 2048, as numbers again."""
    flat, out = tensor.flatten().tolist(), []
    for start in range(0, len(flat), 2048):
        block = flat[start : start + 2048]
        absmax = max(map(abs, block))
        out += [round(127 * x / absmax) * absmax / 127 for x in block]
    return torch.tensor(out).view(tensor.shape)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("shape", [(5, 5), (63, 65), (2, 40, 51)])
def test_is_muon_whose_momentum_is_rounded_after_every_step(
    shape: tuple[int, ...], nesterov: bool
) -> None:
    start, grads = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
    parameter = nn.Parameter(start.clone())
    options = {**OPTIONS, "nesterov": nesterov}
    optimizer = Muon8bit([parameter], quantization="linear", **options)
    weight, momentum = start.clone(), torch.zeros(shape)
    for gradient in grads:
        parameter.grad = gradient
        optimizer.step()
        stacks = [t if t.ndim == 3 else t[None] for t in (gradient, momentum)]
        pairs = zip(*stacks, strict=True)
        updates = [muon_step(*pair, momentum=0.95, nesterov=nesterov) for pair in pairs]
        scale = scale_factor(*shape[-2:], "match_rms")
        weight = weight * (1 - 0.02 * 0.1) - 0.02 * scale * torch.stack(updates).view(shape)
        momentum = rounded_linear(momentum)
    torch.testing.assert_close(parameter.detach(), weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_stays_near_muon_in_full_precision(kind: Kind) -> None:
    start, target = torch.randn(48, 64), torch.randn(48, 64)
    eight = Muon8bit([nn.Parameter(start.clone())], quantization=kind, **OPTIONS)
    full = Muon([nn.Parameter(start.clone())], **OPTIONS)
    ends = []
    for optimizer in (eight, full):
        (parameter,) = optimizer.param_groups[0]["params"]
        generator = torch.Generator().manual_seed(1)
        for _ in range(30):
            noise = torch.randn(48, 64, generator=generator)
            parameter.grad = parameter.detach() - target + 0.1 * noise
            optimizer.step()
        ends.append(parameter.detach())
    assert (ends[0] - ends[1]).norm() < 0.03 * (ends[1] - start).norm()


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_the_state_of_a_matrix_takes_a_byte_an_entry_and_four_a_block(
    build_model: Callable[..., PreTrainedModel], kind: Kind
) -> None:
    model = build_model()
    block = {"name": "muon8bit", "muon8bit": {"quantization": kind}}
    optimizer = build_optimizer(model, OptimizerSettings.model_validate(block))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    (group,) = [group for group in optimizer.param_groups if group["kind"] == "matrix"]
    for parameter in group["params"]:
        held = sum(value.nbytes for value in optimizer.state[parameter].values())
        assert held == parameter.numel() + 4 * -(-parameter.numel() // 2048)
