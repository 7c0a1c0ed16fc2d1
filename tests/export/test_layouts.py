from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM

from wrinklefree.export.layouts import NORMED, layout_of
from wrinklefree.export.student import Student
from wrinklefree.models.folder import stored_tensors, write_json
from wrinklefree.models.surgery import insert_subln
from wrinklefree.models.transforms import ModelFormat

SIZES = {"vocab_size": 11, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1}


def norm(gain_D: Tensor, epsilon: float) -> LlamaRMSNorm:
    module = LlamaRMSNorm(gain_D.numel(), eps=epsilon)
    module.weight.data = gain_D.detach().clone()
    return module


def with_subln(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    write_json(folder / "config.json", model.config.to_diff_dict())
    insert_subln(model)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.01, 3.0)
    return model


@pytest.mark.parametrize("epsilon", [1e-6, 1e-5, 0.37])
@torch.no_grad()
def test_a_norm_and_the_one_in_the_linear_layer_behind_it_are_one_norm(
    tmp_path: Path, epsilon: float
) -> None:
    config = Qwen3Config(**SIZES, head_dim=32, rms_norm_eps=epsilon)
    model = with_subln(Qwen3ForCausalLM(config), tmp_path)
    layout = layout_of(Student(tmp_path, model, ModelFormat()))
    placed = layout.place(stored_tensors(model))
    # From far below the root of epsilon to far above it, and one token that is all zeros.
    sizes_M1 = torch.logspace(-6, 3, 40)[:, None]
    activation_MD = torch.cat([torch.randn(40, 48) * sizes_M1, torch.zeros(1, 48)])
    layer = "model.layers.0"
    for name, linears in NORMED.items():
        ours_MD = norm(model.get_parameter(f"{layer}.{name}.weight"), epsilon)(activation_MD)
        outer_MD = norm(placed[f"{layer}.{name}.weight"], epsilon)(activation_MD)
        for linear in linears:
            gain_D = placed[f"{layer}.{linear}.rms_norm.weight"]
            assert layout.epsilon == epsilon
            stock_MD = norm(gain_D, layout.epsilon)(outer_MD)
            torch.testing.assert_close(stock_MD, ours_MD, rtol=1e-6, atol=0.0)


def test_every_tensor_is_placed_and_no_other_norm_is_touched(tmp_path: Path) -> None:
    model = with_subln(Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32)), tmp_path)
    tensors = stored_tensors(model)
    placed = layout_of(Student(tmp_path, model, ModelFormat())).place(tensors)
    assert len(placed) == len(tensors) + 5
    layer = "model.layers.0"
    for ours, stock in {
        f"{layer}.self_attn.o_proj.norm.weight": f"{layer}.self_attn.o_proj.rms_norm.weight",
        f"{layer}.mlp.down_proj.norm.weight": f"{layer}.mlp.down_proj.rms_norm.weight",
        f"{layer}.mlp.down_proj.linear.weight": f"{layer}.mlp.down_proj.weight",
        f"{layer}.self_attn.q_norm.weight": f"{layer}.self_attn.q_norm.weight",
        "model.norm.weight": "model.norm.weight",
    }.items():
        assert placed[stock] is tensors[ours]


def test_a_model_that_bitnet_has_a_place_for_goes_there(tmp_path: Path) -> None:
    model = with_subln(LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=4)), tmp_path)
    layout = layout_of(Student(tmp_path, model, ModelFormat()))
    assert layout.architecture == "BitNetForCausalLM" and layout.epsilon is None
    tensors = stored_tensors(model)
    placed = layout.place(tensors)
    assert len(placed) == len(tensors)
    name = "model.layers.0.input_layernorm.weight"
    assert placed[name] is tensors[name]
