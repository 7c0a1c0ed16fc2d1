from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.export import gguf
from wrinklefree.export.blocks import BlockType
from wrinklefree.export.gguf import gguf_name, tensors_of, write_gguf
from wrinklefree.export.gguf_stage import export_gguf
from wrinklefree.export.i2_s import check_i2_s
from wrinklefree.export.settings import ExportSettings
from wrinklefree.export.student import Student
from wrinklefree.models.exportable import require_gguf
from wrinklefree.models.transforms import ModelFormat, ternary


class Infos(GGUFReader):
    """Leaves out the bytes of tensors, whose type the package does not know."""

    def _build_tensors(self, start_offs: int, fields: Any) -> None:
        self.start, self.infos = start_offs, fields


def small(hidden: int = 128) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=hidden,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    ternary().apply(model)
    return model


@pytest.fixture
def student(tokenizer: Path) -> Student:
    return Student(tokenizer, small(), ModelFormat())


def test_the_file_holds_the_codes_and_scales_bit_by_bit_as_bitnet_cpp_reads_them(
    student: Student, tmp_path: Path
):
    """By quantize_i2_s and ggml_nbytes of microsoft/BitNet at 16da220 and of its llama.cpp."""
    folder = tmp_path / "export"
    folder.mkdir()
    rows: Tensor = torch.randint(1, 300, (2, 21))
    settings = ExportSettings(gguf=[], i2_s=True)
    facts = export_gguf(settings, student, folder, tokens_BT=rows)
    path = folder / "model-I2_S.gguf"
    assert facts["i2_s"] == {"bytes": path.stat().st_size, "matrices": {"I2_S": 7}}
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", path.name]
    reader, content = Infos(path), path.read_bytes()
    kind = reader.get_field("general.file_type")
    assert kind and kind.contents() == 40
    ours = {gguf_name(name): (values, scale) for name, values, scale in tensors_of(student.model)}
    ends = [0]
    for info in sorted(reader.infos, key=lambda info: info.parts[5][0]):
        values, scale = ours.pop(info.name)
        dimensions, type_number, offset = (part.tolist() for part in info.parts[3:])
        assert offset == [-(-ends[-1] // 32) * 32]  # each where the one before it ends
        bytes_of = {0: 4 * values.size, 1: 2 * values.size, 36: values.size // 4 + 32}
        ends.append(offset[0] + bytes_of[type_number[0]])
        if scale is None:
            continue
        assert type_number == [36] and dimensions == [values.shape[1], values.shape[0]]
        start = reader.start + offset[0]
        for number, code in enumerate(values.ravel().tolist()):
            byte = content[start + number // 128 * 32 + number % 32]
            place = number // 32 % 4
            assert (byte >> (6, 4, 2, 0)[place]) % 4 - 1 == code
        assert struct.unpack_from("<f", content, start + values.size // 4)[0] == np.float32(scale)
    assert not ours


@pytest.mark.parametrize("fault", ["codes", "scale", "norm"])
def test_a_fault_in_the_file_is_found(
    student: Student, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
):
    def planted(model: PreTrainedModel) -> Any:
        for name, values, scale in tensors_of(model):
            changed = values.copy()
            if fault == "codes" and name.endswith("v_proj.weight"):
                changed[1, 2] = 1 - abs(values[1, 2])
            if fault == "norm" and name.endswith("layers.0.input_layernorm.weight"):
                changed[3] = np.nextafter(changed[3], 2)
            wrong = fault == "scale" and name.endswith("up_proj.weight")
            yield name, changed, np.nextafter(np.float32(scale), 1) if wrong else scale

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "tensors_of", planted)
        write_gguf(tmp_path / "a.gguf", student, BlockType.I2_S, BlockType.F16)
    with pytest.raises(RuntimeError, match=r"a.gguf: model.layers.0.* is not ours"):
        check_i2_s(tmp_path / "a.gguf", student.model)


def test_rows_that_are_no_whole_number_of_blocks_are_refused(tokenizer: Path, tmp_path: Path):
    model = small(hidden=192)
    said = "hidden_size is 192, no multiple of 128; num_attention_heads . head_dim is 192"
    with pytest.raises(UserError, match=said):
        write_gguf(tmp_path / "a", Student(tokenizer, model, ModelFormat()), *BLOCKS)
    for wish in ({"i2_s": True}, {"i2_s": True, "gguf": "if_possible"}):
        with pytest.raises(UserError, match=f"asks for I2_S in GGUF.*{said}.*i2_s: false$"):
            require_gguf(wish, model, tokenizer, subln=True)
    require_gguf({"gguf": ["TQ2_0"]}, model, tokenizer, subln=True)


BLOCKS = (BlockType.I2_S, BlockType.F16)
