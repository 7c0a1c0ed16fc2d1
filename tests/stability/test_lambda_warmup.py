from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from wrinklefree.quant.bitlinear import BitLinear
from wrinklefree.stability import LambdaWarmup


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_model_is_quantized_more_and_more(schedule: str) -> None:
    model = nn.Sequential(BitLinear(6, 4), nn.GELU(), BitLinear(4, 3))
    warmup = LambdaWarmup(warmup_steps=4, schedule=schedule)
    rises = {
        "linear": [0.0, 0.25, 0.5, 0.75, 1.0, 1.0],
        "cosine": [(1 - math.cos(math.pi * min(step, 4) / 4)) / 2 for step in range(6)],
    }
    inputs, weight = torch.randn(5, 6), model[0].weight
    for expected in rises[schedule]:
        assert warmup.step(model) == pytest.approx(expected)
        assert model[0].quantization_lambda == model[2].quantization_lambda
        plain = torch.equal(model[0](inputs), inputs @ weight.T + 0)
        assert plain == (expected == 0.0)


def test_a_resumed_warmup_goes_on_where_it_was() -> None:
    model = nn.Sequential(BitLinear(2, 2))
    first, second = (LambdaWarmup(warmup_steps=10) for _ in range(2))
    for _ in range(3):
        first.step(model)
    second.load_state_dict(first.state_dict())
    assert second.step(model) == first.step(model) == pytest.approx(0.3)


def test_zero_steps_quantize_from_the_first() -> None:
    assert LambdaWarmup(warmup_steps=0).step(BitLinear(2, 2)) == 1.0
