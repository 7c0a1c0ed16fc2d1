from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from wrinklefree.export.dequantized import export_dequantized, round_weights
from wrinklefree.export.gate import check_tensors, compare_with_stock
from wrinklefree.export.layouts import layout_of
from wrinklefree.export.reference import with_codes_as_weights
from wrinklefree.export.settings import ExportSettings
from wrinklefree.export.student import load_student
from wrinklefree.models.folder import load_model, save_model
from wrinklefree.models.transforms import ternary
from wrinklefree.quant.settings import QuantizerSettings

DENSE = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
}
ASKED = ExportSettings(dequantized=True, gguf=[])


def export(student: Path, rows_BT: Tensor, settings: ExportSettings = ASKED) -> dict[str, Any]:
    return export_dequantized(settings, load_student(student), student.parent, tokens_BT=rows_BT)


@pytest.fixture
def rows() -> Tensor:
    return torch.randint(1, 300, (3, 21))


Save = Callable[..., Path]


@pytest.fixture
def save(tokenizer: Path, tmp_path: Path) -> Save:
    def save(kind: str, *, subln: bool, **quantizer: Any) -> Path:
        architecture, config = DENSE[kind]
        model = architecture(
            config(
                vocab_size=300,
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                tie_word_embeddings=True,
                initializer_range=0.1,
                pad_token_id=None,
            )
        )
        made = ternary(QuantizerSettings.model_validate(quantizer), subln=subln)
        made.apply(model)
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", ".bias", "alpha")):
                torch.nn.init.uniform_(parameter, 0.1, 0.3)
        save_model(tmp_path / "student", model, made, tokenizer)
        (tmp_path / "README.md").write_text("# A model\n", encoding="utf-8")
        return tmp_path / "student"

    return save


@pytest.mark.parametrize(
    ("kind", "subln", "architecture"),
    [
        ("llama", True, "BitNetForCausalLM"),
        ("llama", False, "LlamaForCausalLM"),
        ("qwen2", False, "Qwen2ForCausalLM"),
        ("qwen3", False, "Qwen3ForCausalLM"),
    ],
)
@pytest.mark.parametrize("scale", ["absmean", "learned"])
def test_stock_transformers_loads_plain_bfloat16_weights_and_computes_what_ours_does(
    save: Save, tmp_path: Path, rows: Tensor, kind: str, subln: bool, architecture: str, scale: str
):
    student = save(kind, subln=subln, scale=scale)
    facts = export(student, rows)["dequantized"]
    folder = tmp_path / "dequantized"
    assert facts["bytes"] == (folder / "model.safetensors").stat().st_size
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    stock = AutoModelForCausalLM.from_pretrained(folder)
    assert type(stock).__name__ == architecture
    assert {parameter.dtype for parameter in stock.parameters()} == {torch.bfloat16}
    ours, _ = load_model(student)
    codes_ON, value = ours.get_submodule("model.layers.1.mlp.up_proj").ternary_codes()
    written_ON = stock.get_parameter("model.layers.1.mlp.up_proj.weight")
    assert torch.equal(written_ON.detach(), codes_ON * value.bfloat16())
    # Far below what quantized activations would make of it.
    assert facts["gate"]["layer_relative_difference"] < 1e-5
    assert 0 < facts["relative_difference"] < 0.05
    assert facts["kl"] < 0.01
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"{facts['bytes']:,} bytes" in card and "## Without ternary layers" in card


def test_norms_that_no_stock_class_has_are_the_reason_for_no_folder(
    save: Save, tmp_path: Path, rows: Tensor
):
    facts = export(save("qwen3", subln=True), rows)
    assert "no class of transformers has both SubLN and what Qwen3For" in str(facts)
    assert list(facts) == ["dequantized_obstacle"]
    assert not (tmp_path / "dequantized").exists()


def test_nothing_is_written_unless_asked(save: Save, tmp_path: Path, rows: Tensor):
    student = save("llama", subln=True)
    assert export(student, rows, ExportSettings(gguf=[])) == {}
    assert not (tmp_path / "dequantized").exists()


@pytest.fixture
def written(save: Save, tmp_path: Path, rows: Tensor) -> tuple[PreTrainedModel, Path]:
    """Our model with SubLN, and the folder."""
    student = save("llama", subln=True)
    export(student, rows)
    return load_model(student)[0], tmp_path / "dequantized"


def flip_a_code(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.self_attn.q_proj.weight"][-1, -1] = 0.5


def scale_up(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.mlp.up_proj.weight"] *= 1.01


def change_a_norm(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.mlp.ffn_sub_norm.weight"][7] *= 1.01


@pytest.mark.parametrize("spoil", [flip_a_code, scale_up, change_a_norm])
def test_tensors_that_are_not_ours_are_found(
    written: tuple[PreTrainedModel, Path], tmp_path: Path, spoil: Callable[..., None]
):
    ours, folder = written
    layout = layout_of(load_student(tmp_path / "student"))
    check_tensors(folder, ours, layout, torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    spoil(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=r"values of model.layers.0.* are not ours"):
        check_tensors(folder, ours, layout, torch.bfloat16)


def test_the_gate_sees_another_epsilon(written: tuple[PreTrainedModel, Path], rows: Tensor):
    ours, folder = written
    plain = with_codes_as_weights(ours)
    round_weights(plain)
    compare_with_stock(plain, folder, rows)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(RuntimeError, match="layer 0 in transformers differs from ours"):
        compare_with_stock(plain, folder, rows)
