from __future__ import annotations

import pytest
import torch
from torch import nn

from wrinklefree.quant.bitlinear import BitLinear
from wrinklefree.quant.settings import Granularity, QuantizerSettings, Scale
from wrinklefree.stability.codes import CodeTelemetry, LayerCodes, codes_of


def weights_of(layer: BitLinear, values: list[list[float]]) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(values))


def test_what_an_update_changes_is_counted_by_hand():
    # The mean magnitude is 1 before and after, so that codes change at 0.5.
    layer = BitLinear(4, 3)
    weights_of(layer, [[1.6, -1.4, 0.4, -0.2], [2.0, 2.0, 2.0, 2.0], [0.1, 0.1, 0.1, 0.1]])
    start = codes_of(nn.Sequential(layer))
    weights_of(layer, [[1.6, 1.4, 0.4, -0.2], [2.0, 2.0, 2.0, 2.0], [0.1, 0.1, 0.1, 0.1]])
    telemetry = CodeTelemetry(nn.Sequential(layer), start)
    weights_of(layer, [[1.4, 1.4, 0.6, -0.2], [2.2, 1.8, 2.0, -2.0], [0.1, 0.1, 0.1, 0.1]])
    found = telemetry.layers()["0"]
    assert found.flipped == pytest.approx(2 / 12)
    assert found.flipped_since == pytest.approx(3 / 12)
    assert found.zero == pytest.approx(5 / 12)
    assert found.dead_rows == pytest.approx(1 / 3)
    assert found.scale == pytest.approx(1.0)
    distances = [0.9, 0.9, 0.1, 0.3, 1.7, 1.3, 1.5, 1.5, *[0.4] * 4]
    assert found.threshold_distance == pytest.approx(sum(distances) / 12)


@pytest.mark.parametrize("granularity", ["tensor", "row"])
@pytest.mark.parametrize("scale", ["absmean", "least_squares", "learned"])
def test_a_code_changes_where_its_distance_is_0(scale: Scale, granularity: Granularity):
    layer = BitLinear(63, 7, quantizer=QuantizerSettings(scale=scale, granularity=granularity))
    codes, one = layer.ternary_codes()
    share = layer.weight.detach().abs() / one
    assert torch.equal(codes != 0, share > 0.5)
    found = CodeTelemetry(layer).layers()[""]
    assert found.flipped == 0.0
    assert found.threshold_distance == pytest.approx((share - 0.5).abs().mean().item(), rel=1e-5)


def test_metrics_are_means_over_layers_and_those_of_each():
    model = nn.Sequential(BitLinear(8, 4), nn.Linear(4, 4), BitLinear(4, 4))
    telemetry = CodeTelemetry(model)
    weights_of(model[2], (-model[2].weight.detach()).tolist())  # pyright: ignore[reportArgumentType]
    metrics = telemetry.metrics()
    assert metrics["ternary/flipped/0"] == 0.0 < metrics["ternary/flipped/2"]
    assert metrics["ternary/flipped"] == pytest.approx(metrics["ternary/flipped/2"] / 2)
    assert len(metrics) == 3 * len(LayerCodes.__annotations__)
    assert CodeTelemetry(nn.Linear(4, 4)).metrics() == {}
