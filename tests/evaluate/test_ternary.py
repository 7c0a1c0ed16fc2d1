from __future__ import annotations

import pytest
import torch
from torch import nn

from wrinklefree.errors import UserError
from wrinklefree.evaluate.ternary import LayerTernary, pooled, ternary_csv, ternary_layers
from wrinklefree.models.surgery import insert_bitlinear, insert_subln
from wrinklefree.quant.bitlinear import BitLinear
from wrinklefree.quant.settings import QuantizerSettings


def test_shares_and_scale_are_those_of_a_count_by_hand():
    layer = BitLinear(5, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-2.0, 0.1, 1.9, 2.0, -4.0]]))
    (found,) = ternary_layers(nn.Sequential(layer), "m")
    # mean|w| = 2; 0.1 rounds to 0.
    assert (found.minus, found.zero, found.plus) == (0.4, 0.2, 0.4)
    assert (found.scale, found.weights) == (pytest.approx(2.0), 5)
    # -1, .05, .95, 1 and -2 scales, in bins of an eighth from -3.
    counted = {index: n for index, n in enumerate(found.histogram) if n}
    assert counted == {8: 1, 16: 1, 24: 1, 31: 1, 32: 1}


def test_weights_beyond_the_histogram_are_in_its_outermost_bins():
    layer = BitLinear(8, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[9.0, -9.0, 0, 0, 0, 0, 0, 0]]))
    (found,) = ternary_layers(nn.Sequential(layer), "m")
    assert (found.histogram[0], found.histogram[-1], sum(found.histogram)) == (1, 1, 8)


def test_shares_agree_with_a_count_in_double_precision():
    torch.manual_seed(3)
    layer = BitLinear(63, 41)
    (found,) = ternary_layers(nn.Sequential(layer), "m")
    weight = layer.weight.detach().double()
    codes = (weight / weight.abs().mean()).round().clamp(-1, 1)
    for code, share in ((-1, found.minus), (0, found.zero), (1, found.plus)):
        assert share == pytest.approx((codes == code).double().mean().item(), abs=1 / codes.numel())


@pytest.mark.parametrize("granularity", ["tensor", "head", "row", "group"])
@pytest.mark.parametrize("scale", ["absmean", "least_squares", "learned"])
def test_shares_and_scale_are_those_of_the_product_of_every_quantizer(scale, granularity):
    torch.manual_seed(3)
    quantizer = QuantizerSettings(scale=scale, granularity=granularity, group_size=64)
    layer = BitLinear(192, 42, quantizer=quantizer, head_size=7)
    with torch.no_grad():
        layer.weight[5] *= 7
        if layer.alpha is not None:
            layer.alpha.mul_(torch.rand_like(layer.alpha) + 0.5)
        # What the layer multiplies by, read off from its products with one input at a time.
        product = layer(torch.eye(192)).T.double()
    (found,) = ternary_layers(nn.Sequential(layer), "m")
    assert found.minus == (product < 0).double().mean()
    assert found.zero == (product == 0).double().mean()
    assert found.plus == (product > 0).double().mean()
    _, scales = layer.ternary_codes()
    magnitudes = product.abs()[product != 0]
    torch.testing.assert_close(scales.double().expand(42, 192)[product != 0], magnitudes)
    assert found.scale == pytest.approx(scales.expand(42, 192).double().mean().item())


def test_every_projection_of_every_layer_is_named_by_kind_and_depth(tiny_llama):
    model = tiny_llama(0)
    insert_subln(model)
    insert_bitlinear(model)
    found = ternary_layers(model, "m")
    kinds = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert sorted((layer.depth, layer.kind) for layer in found) == sorted(
        (depth, kind) for depth in (0, 1) for kind in kinds
    )


def test_a_dense_model_has_no_ternary_layers(tiny_llama):
    assert ternary_layers(tiny_llama(0), "m") == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(bad: float):
    layer = BitLinear(4, 4)
    with torch.no_grad():
        layer.weight[2, 1] = bad
    with pytest.raises(UserError, match="model stage2, layer 0"):
        ternary_layers(nn.Sequential(layer), "stage2")


def test_pooled_shares_count_weights_and_not_layers():
    small = LayerTernary("a", 10, 0.5, 0.5, 0.0, 1.0)
    large = LayerTernary("b", 30, 0.1, 0.1, 0.8, 1.0)
    found = pooled([small, large])
    assert found == pytest.approx(
        {"minus": 0.2, "zero": 0.2, "plus": 0.6, "layers": 2, "weights": 40}
    )


def test_csv_has_a_line_per_layer():
    layers = [LayerTernary("model.layers.0.mlp.up_proj", 8, 0.25, 0.5, 0.25, 0.0625)]
    assert ternary_csv({"stage2": layers}).splitlines() == [
        "model,layer,weights,minus,zero,plus,scale",
        "stage2,model.layers.0.mlp.up_proj,8,0.250000,0.500000,0.250000,6.25000000e-02",
    ]
