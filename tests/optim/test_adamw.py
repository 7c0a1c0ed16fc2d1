from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.optim.adamw import build_adamw
from wrinklefree.optim.settings import AdamWSettings

BASE = {"lr": 3e-4, "weight_decay": 0.5}


def textbook(start: Tensor, grads: list[Tensor], settings: AdamWSettings, decay: float) -> Tensor:
    """Algorithm 2 of arXiv 1711.05101 in float64, with the rate as schedule multiplier."""
    weight, m, v = start.double(), torch.zeros(()), torch.zeros(())
    first, second = settings.betas
    for t, gradient in enumerate(grads, start=1):
        m = first * m + (1 - first) * gradient.double()
        v = second * v + (1 - second) * gradient.double() ** 2
        m_hat, v_hat = m / (1 - first**t), v / (1 - second**t)
        step = m_hat / (v_hat.sqrt() + settings.eps) + decay * weight
        weight = weight - settings.lr * step
    return weight


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"lr": 8e-4},
        {"weight_decay": 0.0},
        {"betas": [0.6, 0.95]},
        {"betas": [0.9, 0.7]},
        {"eps": 0.3},
    ],
)
def test_follows_the_paper_and_decays_hidden_matrices_only(
    build_model: Callable[..., PreTrainedModel], change: dict[str, object]
) -> None:
    settings = AdamWSettings(**BASE | change)
    model = build_model("qwen3")
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    grads = {name: [torch.randn(p.shape) for _ in range(3)] for name, p in start.items()}
    optimizer = build_adamw(model, settings)
    for step in range(3):
        for name, parameter in model.named_parameters():
            parameter.grad = grads[name][step]
        optimizer.step()
    for name, parameter in model.named_parameters():
        decay = settings.weight_decay if ".layers." in name and parameter.ndim == 2 else 0.0
        expected = textbook(start[name], grads[name], settings, decay)
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-8)
