from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from wrinklefree.models.layers import decoder_layers
from wrinklefree.models.saving import GatedMlp, gated_product, rms_norm
from wrinklefree.models.surgery import insert_bitlinear, insert_subln
from wrinklefree.quant.bitlinear import set_quantization_lambda


def gradients(run: Callable[..., Tensor], *leaves: Tensor) -> list[Tensor]:
    """Output and gradients for fixed inputs."""
    fresh = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    output = run(*fresh)
    weights = torch.arange(output.numel(), dtype=torch.float64).sin().reshape(output.shape)
    (output * weights.to(output.dtype)).sum().backward()
    return [output.detach(), *(leaf.grad for leaf in fresh if leaf.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_has_the_bits_and_the_gradients_of_transformers(dtype: torch.dtype) -> None:
    norm = LlamaRMSNorm(63, eps=1e-5)
    nn.init.normal_(norm.weight)
    x = (torch.randn(2, 5, 63) * 3).to(dtype)

    def theirs(x: Tensor, gain: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"weight": gain}, x)

    def mine(x: Tensor, gain: Tensor) -> Tensor:
        return rms_norm(x, gain, 1e-5)

    actual, expected = (gradients(run, x, norm.weight) for run in (mine, theirs))
    assert torch.equal(actual[0], expected[0])
    with torch.no_grad():
        assert torch.equal(mine(x, norm.weight), expected[0])
    double = gradients(
        lambda x, gain: gain * F.rms_norm(x, (63,), eps=1e-5), x.double(), norm.weight.double()
    )
    for a, e, d in zip(actual, expected, double, strict=True):
        assert a.dtype == e.dtype
        assert (a - d).norm() <= 1.1 * (e - d).norm() + 1e-6 * d.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_gated_product_is_that_of_autograd_to_the_bit(dtype: torch.dtype) -> None:
    gate, up = torch.randn(2, 5, 63, dtype=dtype), torch.randn(2, 5, 63, dtype=dtype)
    plain = gradients(lambda gate, up: F.silu(gate) * up, gate, up)
    assert all(map(torch.equal, gradients(gated_product, gate, up), plain))
    with torch.no_grad():
        assert torch.equal(gated_product(gate, up), plain[0])


def test_only_what_is_read_is_saved() -> None:
    saved: list[Tensor] = []
    value, gate = (torch.randn(5, 63, requires_grad=True) for _ in range(2))
    gain = torch.randn(63, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        rms_norm(value.half(), gain, 1e-5)
        gated_product(gate, value)
    large = [t for t in saved if t.numel() > 63 and t.dtype != torch.float16]
    assert {t.data_ptr() for t in large} == {gate.data_ptr(), value.data_ptr()}
    assert len(saved) == 5


def test_surgery_replaces_the_gated_mlp_and_keeps_names_and_values(tiny_model) -> None:
    dense, model = tiny_model(), tiny_model()
    insert_bitlinear(model)
    set_quantization_lambda(model, 0.0)
    assert list(model.state_dict()) == list(dense.state_dict())
    assert all(isinstance(layer.get_submodule("mlp"), GatedMlp) for layer in decoder_layers(model))
    ids = torch.randint(0, 40, (2, 17))
    assert torch.equal(model(ids).logits, dense(ids).logits)
    other = tiny_model()
    for layer in decoder_layers(other):
        layer.get_submodule("mlp").config.hidden_act = "gelu"  # pyright: ignore
    insert_bitlinear(other)
    assert not any(isinstance(m, GatedMlp) for m in other.modules())


def saved_bytes(model: PreTrainedModel, autocast: bool) -> int:
    """Of distinct storages that a decoder layer saves, parameters apart."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage  # held, so that no address is given out twice
        return tensor

    hidden_BTD = torch.randn(2, 256, 64, requires_grad=True)
    positions_BT = torch.arange(256).expand(2, -1)
    rotary: Any = model.get_decoder().get_submodule("rotary_emb")
    embeddings = rotary(hidden_BTD, positions_BT)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        decoder_layers(model)[0](hidden_BTD, position_embeddings=embeddings)
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_a_ternary_layer_with_subln_saves_no_more_than_the_dense_one(
    tiny_model, autocast: bool
) -> None:
    dense, model = tiny_model().float(), tiny_model().float()
    insert_bitlinear(model)
    insert_subln(model)
    assert saved_bytes(model, autocast) <= saved_bytes(dense, autocast)
