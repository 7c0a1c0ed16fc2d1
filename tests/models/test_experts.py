from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from wrinklefree.errors import UserError
from wrinklefree.mixture.batch import Batch
from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.calibration import calibrate_subln
from wrinklefree.models.experts import Experts, captured_routers, open_experts
from wrinklefree.models.exportable import export_obstacles
from wrinklefree.models.folder import save_model
from wrinklefree.models.forward import hidden_states
from wrinklefree.models.layers import decoder_layers
from wrinklefree.models.reconstruct import reconstruct_layers
from wrinklefree.models.settings import ReconstructSettings
from wrinklefree.models.surgery import SublnLinear, insert_bitlinear, insert_subln, subln_modules
from wrinklefree.models.transforms import ModelFormat
from wrinklefree.optim.partition import partition_parameters
from wrinklefree.quant.bitlinear import (
    BitLinear,
    TernaryLayer,
    quantization_lambda_of,
    set_quantization_lambda,
)
from wrinklefree.quant.settings import QuantizerSettings

Tiny = Callable[..., PreTrainedModel]
MakeBatch = Callable[..., Batch]


def experts_of(model: PreTrainedModel) -> Any:
    return decoder_layers(model)[1].get_submodule("mlp.experts")


def logits_of(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40)[None]).logits


def read(model: PreTrainedModel, rows: Batch) -> Tensor:
    mask = causal_document_mask(rows.document_ids_BT)
    return hidden_states(model, rows.tokens_BT, rows.positions_BT, mask)


class SlowExpert(nn.Module):
    """One expert as a dense feed-forward network of ternary layers, with copies of its weights."""

    def __init__(self, experts: Any, number: int, quantizer: QuantizerSettings) -> None:
        super().__init__()
        gate, up = experts.gate_up_proj.weight[number].chunk(2)
        parts = {"gate": gate, "up": up, "down": experts.down_proj.linear.weight[number]}
        for name, weight in parts.items():
            linear = nn.Linear(*weight.T.shape, bias=False, dtype=weight.dtype)
            linear.weight = nn.Parameter(weight.detach().clone())
            setattr(self, name, BitLinear.from_linear(linear, quantizer))
        norm = LlamaRMSNorm(gate.shape[0], eps=experts.down_proj.norm.variance_epsilon).double()
        norm.weight = nn.Parameter(experts.down_proj.norm.weight[number].detach().clone())
        self.down = SublnLinear(norm, self.down)

    def forward(self, token_1D: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(token_1D)) * self.up(token_1D))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_experts_are_their_networks_one_by_one(
    tiny: Tiny, granularity: Any, strength: float
) -> None:
    model = tiny("qwen3_moe").double()
    quantizer = QuantizerSettings(granularity=granularity)
    insert_bitlinear(model, quantizer)
    insert_subln(model)
    experts = experts_of(model)
    nn.init.normal_(experts.down_proj.norm.weight, 1.0, 0.2)
    slow = nn.ModuleList(SlowExpert(experts, number, quantizer) for number in range(5))
    for one in (model, slow):
        set_quantization_lambda(one, strength)
    taken_MK = torch.tensor([[0, 1], [3, 1], [1, 3], [0, 3], [1, 0]])  # neither 2 nor 4
    found: list[list[Tensor]] = []
    given_MD = torch.randn(5, 64, dtype=torch.float64)
    weights_MK = torch.rand(5, 2, dtype=torch.float64)
    direction_MD = torch.randn(5, 64, dtype=torch.float64)
    for run in (experts, None):
        inputs = [tensor.clone().requires_grad_() for tensor in (given_MD, weights_MK)]
        if run:
            output_MD = experts(inputs[0], taken_MK, inputs[1])
        else:
            pairs = [
                sum(inputs[1][m, k] * slow[e](inputs[0][[m]])[0] for k, e in enumerate(taken))
                for m, taken in enumerate(taken_MK.tolist())
            ]
            output_MD = torch.stack(pairs)
        output_MD.backward(direction_MD)
        found.append([output_MD.detach(), *(tensor.grad for tensor in inputs)])
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-8)
    stacks = (experts.gate_up_proj.weight, experts.down_proj.linear.weight)
    for number, one in enumerate(slow):
        for own, layers in zip(stacks, ((one.gate, one.up), (one.down.linear,)), strict=True):
            wanted = [
                torch.zeros_like(layer.weight) if layer.weight.grad is None else layer.weight.grad
                for layer in layers
            ]
            torch.testing.assert_close(own.grad[number], torch.cat(wanted), rtol=1e-6, atol=1e-8)
        gain = one.down.norm.weight
        wanted = torch.zeros_like(gain) if gain.grad is None else gain.grad
        found_gain = experts.down_proj.norm.weight.grad[number]
        torch.testing.assert_close(found_gain, wanted, rtol=1e-6, atol=1e-8)


def test_opened_experts_compute_what_those_of_transformers_do(tiny: Tiny) -> None:
    model = tiny("qwen3_moe").double()
    before, own = logits_of(model), experts_of(model)
    parameters = {id(parameter) for parameter in model.parameters()}
    for layer in decoder_layers(model):
        open_experts(layer)
    assert isinstance(experts_of(model), Experts)
    assert {id(parameter) for parameter in model.parameters()} == parameters
    assert experts_of(model).gate_up_proj.weight is own.gate_up_proj
    torch.testing.assert_close(logits_of(model), before)


def test_experts_and_projections_become_ternary_and_routers_stay(tiny: Tiny) -> None:
    model = tiny("qwen3_moe", tie_word_embeddings=False)
    before = logits_of(model)
    insert_bitlinear(model)
    ternary = {name for name, part in model.named_modules() if isinstance(part, TernaryLayer)}
    attention = {f"self_attn.{name}_proj" for name in "qkvo"}
    dense = {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    experts = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
    assert ternary == {f"model.layers.0.{name}" for name in attention | dense} | {
        f"model.layers.1.{name}" for name in attention | experts
    }
    for name, matrices in (("gate_up_proj", 10), ("down_proj", 5)):
        _, scales = getattr(experts_of(model), name).ternary_codes()
        assert scales.unique().numel() == matrices
    set_quantization_lambda(model, 0.0)
    torch.testing.assert_close(logits_of(model), before)
    set_quantization_lambda(model, 1.0)
    assert (logits_of(model) - before).norm() > 0.05 * before.norm()


def test_the_order_of_surgery_does_not_matter(tiny: Tiny) -> None:
    found, dense = [], tiny("qwen3_moe")
    for steps in ((insert_subln, insert_bitlinear), (insert_bitlinear, insert_subln)):
        model = copy.deepcopy(dense)
        for step in steps:
            step(model)
        names = [name for name, _ in model.named_parameters()]
        assert "model.layers.1.mlp.experts.down_proj.norm.weight" in names
        found.append((sorted(names), logits_of(model)))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_a_dense_folder_with_experts_loads_in_stock_transformers(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path
) -> None:
    model = tiny("qwen3_moe")
    save_model(tmp_path / "model", model, ModelFormat(), tokenizer_folder)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(logits_of(stock), logits_of(model))


def test_stacks_train_as_matrices_and_gains_of_experts_as_norms(tiny: Tiny) -> None:
    model = tiny("qwen3_moe")
    insert_bitlinear(model, QuantizerSettings(scale="learned"))
    insert_subln(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)].removeprefix("model.layers.1.mlp."): (part.kind, part.rows)
        for part in partition_parameters(model)
        for parameter in part.parameters
    }
    wanted = {
        "experts.gate_up_proj.weight": ("expert_stack", [24, 24]),
        "experts.down_proj.linear.weight": ("expert_stack", None),
        "experts.down_proj.norm.weight": ("norm", None),
        "experts.gate_up_proj.alpha": ("other", None),
        "gate.weight": ("router", None),
    }
    assert {name: found[name] for name in wanted} == wanted


def test_gains_are_fitted_to_the_tokens_that_each_expert_reads_without_padding(
    tiny: Tiny, batch: MakeBatch
) -> None:
    model, batches = tiny("qwen3_moe"), [batch(rows=2), batch(rows=3)]
    insert_subln(model)
    insert_bitlinear(model)
    telemetry = calibrate_subln(model, batches, "calibrated")
    assert [entry["module"] for entry in telemetry[2:]] == [
        "self_attn.o_proj",
        "mlp.experts.down_proj",
    ]
    module = subln_modules(decoder_layers(model)[1])["mlp.experts.down_proj"]
    sums = torch.zeros(2, 5, 24, dtype=torch.float64)

    def add(_: Any, arguments: tuple[Any, ...], real_M: Tensor) -> None:
        x, routing = arguments
        for row, expert, token in zip(
            x.double(), routing.layer_P.tolist(), routing.token_P.tolist(), strict=True
        ):
            if real_M[token]:
                h = row / (row.square().mean() + 1e-5).sqrt()
                sums[:, expert] += torch.stack([row * h, h * h])

    with torch.no_grad(), quantization_lambda_of(model, 0.0):
        for item in batches:
            real_M = (item.document_ids_BT >= 0).flatten()
            hook = module.register_forward_pre_hook(
                lambda part, arguments, real_M=real_M: add(part, arguments, real_M)
            )
            read(model, item)
            hook.remove()
    gain = module.norm.weight.detach().double()
    torch.testing.assert_close(gain, sums[0] / sums[1], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(gain[0], gain[1], rtol=0.01)


def test_layers_with_experts_can_be_reconstructed(
    tiny: Tiny, batch: MakeBatch, tmp_path: Path
) -> None:
    model, rows = tiny("qwen3_moe"), [batch(rows=4), batch(rows=4)]
    insert_subln(model)
    insert_bitlinear(model)
    calibrate_subln(model, rows, "calibrated")
    facts = reconstruct_layers(model, rows, ReconstructSettings(epochs=8), tmp_path)
    errors = facts["layers"][1]
    assert errors["error_after"] < 0.9 * errors["error_before"]


def test_what_routers_say_is_read_by_row_and_token(tiny: Tiny, batch: MakeBatch) -> None:
    model, rows = tiny("qwen3_moe", decoder_sparse_step=1), batch(rows=3, length=12)
    with captured_routers(model) as logits:
        read(model, rows)
    assert [tensor.shape for tensor in logits] == [(3, 12, 5)] * 2
    with captured_routers(model) as alone:
        read(model, Batch(*(value[1:2] for value in vars(rows).values())))
    torch.testing.assert_close(alone[1][0], logits[1][1], rtol=1e-4, atol=1e-5)
    assert logits[0].requires_grad
    read(model, rows)
    assert len(logits) == 2


def test_experts_with_another_gate_are_refused(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="hidden_act is gelu: experts are made ternary with silu"):
        insert_bitlinear(tiny("qwen3_moe", hidden_act="gelu"))


def test_an_export_of_experts_is_refused_before_anything_is_trained(tiny: Tiny) -> None:
    (reason,) = export_obstacles(tiny("qwen3_moe"))
    assert reason.startswith("its architecture is qwen3_moe, none of llama")
