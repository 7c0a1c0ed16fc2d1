from __future__ import annotations

import copy
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from wrinklefree.errors import UserError
from wrinklefree.export import gguf, gguf_gate, gguf_stage, llama_cpp, settings
from wrinklefree.export.blocks import ROW_MULTIPLES, BlockType, block_type, pack_blocks
from wrinklefree.export.gguf import tensors_of, write_gguf
from wrinklefree.export.gguf_gate import check_tensors, check_tokens
from wrinklefree.export.gguf_stage import export_gguf
from wrinklefree.export.llama_cpp import LlamaCpp, decoded, opened
from wrinklefree.export.reference import with_codes_as_weights
from wrinklefree.export.settings import ExportSettings
from wrinklefree.export.student import Student, load_student
from wrinklefree.models import exportable
from wrinklefree.models.exportable import llama_cpp_obstacles
from wrinklefree.models.folder import save_model
from wrinklefree.models.transforms import ModelFormat, ternary
from wrinklefree.tokens.tokenizer import load_tokenizer
from wrinklefree.tracking.files import write_atomically

BLOCKS = tuple(ROW_MULTIPLES)
Fault = Callable[[pytest.MonkeyPatch], None]
"""Plants itself in what is written, or how it is run, from then on."""
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


DENSE = {
    "bitnet": (LlamaForCausalLM, LlamaConfig, {}),
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 32}),
}
EVERY_GRAPH = pytest.mark.parametrize("student", DENSE, indirect=True)


def dense(graph: str = "bitnet", **changes: Any) -> PreTrainedModel:
    architecture, config, own = DENSE[graph]
    return architecture(config(**SIZES | own | changes)).eval()


def small(graph: str = "bitnet", **changes: Any) -> PreTrainedModel:
    """A ternary model that is of this architecture in llama.cpp."""
    model = dense(graph, **changes)
    ternary(subln=graph == "bitnet").apply(model)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        if name.endswith("bias"):
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
    return model


def save_student(folder: Path, tokenizer: Path, graph: str, **changes: Any) -> Path:
    save_model(folder, small(graph, **changes), ternary(subln=graph == "bitnet"), tokenizer)
    return folder


@pytest.fixture
def student(request: pytest.FixtureRequest, tokenizer: Path, tmp_path: Path) -> Path:
    return save_student(tmp_path / "student", tokenizer, getattr(request, "param", "bitnet"))


@pytest.fixture
def rows() -> Tensor:
    return torch.randint(1, 300, (3, 41))


@given(
    rows=st.integers(1, 7),
    blocks=st.integers(1, 3),
    scale=st.floats(2**-13, 128.0, width=32),
    seed=st.integers(0, 2**31),
)
def test_blocks_hold_the_codes_and_the_scale_in_float16(
    rows: int, blocks: int, scale: float, seed: int
):
    generator = np.random.default_rng(seed)
    for kind in BLOCKS:
        codes_ON = generator.integers(-1, 2, (rows, blocks * ROW_MULTIPLES[kind])).astype(np.int8)
        codes_ON[0] = 0  # a block without a scale to be seen
        packed_OB = pack_blocks(codes_ON, scale, kind)
        assert packed_OB.dtype == np.uint8 and len(packed_OB) == rows
        expected_ON = codes_ON * np.float32(np.float16(scale))
        assert np.array_equal(decoded(kind, packed_OB), expected_ON.ravel())


def test_rows_that_no_block_holds_are_refused_and_others_are_q4_0():
    assert block_type(576, BlockType.TQ2_0) == BlockType.Q4_0
    assert block_type(1536, BlockType.TQ1_0) == BlockType.TQ1_0
    with pytest.raises(ValueError, match="rows of 288: no multiple of 256"):
        pack_blocks(np.zeros((2, 288), np.int8), 1.0, BlockType.TQ2_0)


@EVERY_GRAPH
def test_llama_cpp_computes_what_ours_does_with_every_type(
    student: Path, rows: Tensor, request: pytest.FixtureRequest
):
    asked = ExportSettings(gguf=["TQ2_0", "TQ1_0", "Q2_0", "Q4_0", "F32"], gguf_embedding="F32")
    folder = student.parent / "export"
    folder.mkdir()
    facts = export_gguf(asked, load_student(student), folder, tokens_BT=rows)["gguf"]
    names = [f"model-{name}.gguf" for name in asked.gguf]
    assert sorted(path.name for path in folder.iterdir()) == sorted(["README.md", *names])
    card = (folder / "README.md").read_text()
    assert all(f"| `{name}` | {(folder / name).stat().st_size:,} |" in card for name in names)
    assert facts["float32_relative_difference"] < 2e-4
    assert facts["float32_greedy_tokens"] == 3 * 32
    assert facts["TQ2_0"]["matrices"] == {"Q4_0": 12, "TQ2_0": 2}  # of 256 features: down_proj
    assert facts["Q4_0"]["matrices"] == {"Q4_0": 14}
    assert facts["Q2_0"]["matrices"] == {"Q2_0": 14}
    for name in asked.gguf:
        assert facts[name]["bytes"] == (folder / f"model-{name}.gguf").stat().st_size
        assert facts[name]["kl"] < 1e-3
        assert facts[name]["greedy_ties"] < facts[name]["greedy_tokens"] == 3 * 32
    assert facts["TQ1_0"]["bytes"] < facts["TQ2_0"]["bytes"] < facts["Q4_0"]["bytes"]
    assert facts["Q2_0"]["bytes"] < facts["TQ1_0"]["bytes"]  # no row is left to Q4_0
    architecture = GGUFReader(folder / "model-Q4_0.gguf").get_field("general.architecture")
    assert architecture and architecture.contents() == request.node.callspec.params["student"]


def test_llama_cpp_scales_rotary_embeddings_as_llama_3_does(
    tokenizer: Path, tmp_path: Path, rows: Tensor
):
    student = save_student(tmp_path / "student", tokenizer, "llama", rope_parameters=LLAMA3_ROPE)
    asked = ExportSettings(gguf=["F32"], gguf_embedding="F32")
    facts = export_gguf(asked, load_student(student), tmp_path, tokens_BT=rows)["gguf"]
    assert facts["float32_relative_difference"] < 2e-4


@pytest.mark.parametrize("graph", ["llama", "qwen3"])
def test_a_head_beside_the_embedding_is_written_where_the_graph_has_one(
    tokenizer: Path, tmp_path: Path, rows: Tensor, graph: str
):
    student = save_student(tmp_path / "student", tokenizer, graph, tie_word_embeddings=False)
    sizes = []
    for name in ("Q8_0", "F16"):
        asked = ExportSettings.model_validate({"gguf": ["Q4_0"], "gguf_embedding": name})
        folder = tmp_path / name
        folder.mkdir()
        facts = export_gguf(asked, load_student(student), folder, tokens_BT=rows)["gguf"]
        assert facts["float32_relative_difference"] < 2e-4
        sizes.append(facts["Q4_0"]["bytes"])
    assert sizes[1] - sizes[0] > 2 * (0.9 * 300 * 64 * 0.9)  # of both


def test_the_type_of_the_embedding_has_its_effect(student: Path, rows: Tensor):
    sizes = []
    for name in ("Q8_0", "F16", "F32"):
        asked = ExportSettings.model_validate({"gguf": ["Q4_0"], "gguf_embedding": name})
        folder = student.parent / name
        folder.mkdir()
        facts = export_gguf(asked, load_student(student), folder, tokens_BT=rows)
        sizes.append(facts["gguf"]["Q4_0"]["bytes"])
    assert sizes[1] - sizes[0] > 0.9 * 300 * 64 * 0.9
    assert sizes[2] - sizes[1] == 300 * 64 * 2


def test_no_type_writes_no_file(student: Path, rows: Tensor, tmp_path: Path):
    assert (
        export_gguf(ExportSettings(gguf=[]), load_student(student), tmp_path, tokens_BT=rows) == {}
    )
    with pytest.raises(ValueError, match="a type comes twice"):
        ExportSettings(gguf=["TQ2_0", "TQ2_0"])


def planted(student: Path, path: Path, kind: BlockType = BlockType.F32) -> PreTrainedModel:
    made = load_student(student)
    write_gguf(path, made, kind, BlockType.F32)
    return made.model


def in_tensor(name: str, change: Callable[..., Any]) -> Fault:
    """Of the one tensor ``name``: ``change`` takes its values and scale, and returns the values."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        def changed(model: PreTrainedModel) -> Iterator[tuple[str, np.ndarray, float | None]]:
            for own, values, scale in tensors_of(model):
                if own == name:
                    values, scale = change(values.copy(), scale)
                yield own, values, scale

        patch.setattr(gguf, "tensors_of", changed)

    return plant


def with_another_code(values: np.ndarray, scale: float | None) -> tuple[np.ndarray, float | None]:
    values[-1, -1] = -1 if values[-1, -1] == 1 else 1
    return values, scale


def in_another_order(values: np.ndarray, scale: float | None) -> tuple[np.ndarray, float | None]:
    """As architecture llama wants the rows, once more where it is that."""
    return values.reshape(4, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape), scale


def another_epsilon(patch: pytest.MonkeyPatch) -> None:
    def write(writer: Any, config: Any) -> None:
        config = copy.deepcopy(config)
        config.rms_norm_eps = 0.1
        shape(writer, config)

    shape = gguf._write_shape
    patch.setattr(gguf, "_write_shape", write)


def another_epsilon_among_large_errors(patch: pytest.MonkeyPatch) -> None:
    another_epsilon(patch)
    patch.setattr(gguf_gate, "PACKED_TOLERANCE", 1.0)


def a_cache_that_forgets(patch: pytest.MonkeyPatch) -> None:
    def forgets(self: LlamaCpp, tokens: list[int], position: int = 0, **kinds: bool) -> np.ndarray:
        return logits(self, tokens, 0, **kinds)

    logits = LlamaCpp.logits
    patch.setattr(LlamaCpp, "logits", forgets)


def queries_as_in_transformers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gguf, "_in_pairs", lambda rows_ON, size: rows_ON)


NORM, QUERY = "model.layers.1.input_layernorm.weight", "model.layers.0.self_attn.q_proj.weight"
UP = "model.layers.1.mlp.up_proj.weight"
CODE = in_tensor(QUERY, with_another_code), f": 1 of .* values of {QUERY} are not ours"
SCALE = in_tensor(UP, lambda codes, scale: (codes, scale * 1.01)), f"values of {UP} are not ours"
"""SubLN cancels it."""
LOGITS = "logits in llama.cpp differ"
GREEDY = r"greedy token \d+ is \d+ in llama.cpp and \d+ here"
IN_EVERY_GRAPH = {
    "order": ("F32", in_tensor(QUERY, in_another_order), LOGITS),
    "epsilon": ("F32", another_epsilon, f"{LOGITS} .*, allowed 0.0002"),
    "cache": ("F32", a_cache_that_forgets, GREEDY),
    "packed order": ("Q4_0", in_tensor(QUERY, in_another_order), f"values of {QUERY} are not ours"),
    "packed epsilon": ("Q4_0", another_epsilon, LOGITS),
}
FAULTS = {
    **IN_EVERY_GRAPH,
    "pairs": ("F32", queries_as_in_transformers, LOGITS),
    "code": ("Q4_0", *CODE),
    "scale": ("Q4_0", *SCALE),
    "norm": ("Q4_0", in_tensor(NORM, lambda gain, _: (gain * 1.01, None)), f"values of {NORM}"),
    "divergence": ("Q4_0", another_epsilon_among_large_errors, "the KL divergence differ"),
    "packed cache": ("Q4_0", a_cache_that_forgets, GREEDY),
}


@pytest.mark.parametrize(
    ("student", "name"),
    [
        *itertools.product(DENSE, IN_EVERY_GRAPH),
        ("llama", "pairs"),
        *(("bitnet", name) for name in ("code", "scale", "norm", "divergence", "packed cache")),
    ],
    indirect=["student"],
)
def test_a_fault_in_a_file_ends_the_export(
    student: Path, rows: Tensor, monkeypatch: pytest.MonkeyPatch, name: str
):
    file, fault, said = FAULTS[name]

    def write(path: Path, *how: Any) -> dict[str, int]:
        if path.name == f"model-{file}.gguf":
            fault(monkeypatch)
        return write_gguf(path, *how)

    monkeypatch.setattr(gguf_stage, "write_gguf", write)
    asked = ExportSettings(gguf=["Q4_0"])
    with pytest.raises(RuntimeError, match=f"model-{file}.gguf.*{said}"):
        export_gguf(asked, load_student(student), student.parent, tokens_BT=rows)


@pytest.mark.parametrize("kind", [*BLOCKS, BlockType.F32], ids=lambda kind: kind.name)
@pytest.mark.parametrize(("fault", "said"), [CODE, SCALE], ids=["code", "scale"])
@pytest.mark.parametrize("graph", DENSE)
def test_a_wrong_code_and_a_wrong_scale_are_found_in_every_type(
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    graph: str,
    kind: BlockType,
    fault: Fault,
    said: str,
):
    student = save_student(tmp_path / "student", tokenizer, graph, hidden_size=256)
    check_tensors(tmp_path / "a.gguf", planted(student, tmp_path / "a.gguf", kind))
    fault(monkeypatch)
    model = planted(student, tmp_path / "a.gguf", kind)
    with pytest.raises(RuntimeError, match=said):
        check_tensors(tmp_path / "a.gguf", model)


def test_text_that_is_split_otherwise_ends_the_export(
    student: Path, tmp_path: Path, rows: Tensor, monkeypatch: pytest.MonkeyPatch
):
    tokenizer = Tokenizer.from_file(str(student / "tokenizer.json"))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(["in 1984 there were 12345 of 12345 people"] * 9, trainer)
    tokenizer.save(str(student / "tokenizer.json"))
    made, asked = load_student(student), ExportSettings(gguf=["Q4_0"])
    facts = export_gguf(asked, made, tmp_path, tokens_BT=rows)
    assert facts["gguf"]["texts"] == 4 + len(rows)
    monkeypatch.setitem(exportable._PRETOKENIZERS, ("ByteLevel",), "smollm")  # single digits
    with pytest.raises(RuntimeError, match=r"splits 'In 1984, .* than our tokenizer, from token"):
        export_gguf(asked, made, tmp_path, tokens_BT=rows)


LLAMA3_REGEX = TikTokenConverter(None).pattern


def tokenizer_by(pattern: str, folder: Path, *, whole_words: bool = False) -> None:
    """Of 300 ids, with merges that would not be made by another way to split text."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole_words))
    tokenizer.normalizer = None if whole_words else normalizers.NFC()
    by_pattern = pre_tokenizers.Split(Regex(pattern), "isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([by_pattern, in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet
    )
    lines = ["def f(x):\n\n    return (x)\n\n", "in 1984 there were 12345 people"]
    tokenizer.train_from_iterator(lines * 9, trainer)
    folder.mkdir()
    content = json.loads(tokenizer.to_str())
    if whole_words:  # one that no merges make
        del content["model"]["merges"][-1]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')


@pytest.mark.parametrize(
    ("pattern", "whole_words", "other"),
    [(PRETOKENIZE_REGEX, False, "gpt-2"), (LLAMA3_REGEX, True, "qwen2")],
    ids=["Qwen", "Llama 3"],
)
def test_text_is_split_as_the_models_own_tokenizers_do(
    pattern: str, whole_words: bool, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tokenizer_by(pattern, tmp_path / "tokenizer", whole_words=whole_words)
    student = save_student(tmp_path / "student", tmp_path / "tokenizer", "qwen3")
    planted(student, tmp_path / "a.gguf")
    rows = [[5, 6, 7], list(range(1, 300)), [299]]
    assert check_tokens(tmp_path / "a.gguf", student, rows) == 7
    tokenizer_by(pattern, tmp_path / "merged", whole_words=not whole_words)
    assert exportable.pretokenizer_of(tmp_path / "merged") is None
    monkeypatch.setattr("wrinklefree.export.gguf.pretokenizer_of", lambda folder: other)
    planted(student, tmp_path / "b.gguf")
    with pytest.raises(RuntimeError, match=r"than our tokenizer, from token"):
        check_tokens(tmp_path / "b.gguf", student, [])


@pytest.mark.parametrize(
    ("config", "files", "begin", "template"),
    [
        ({"bos_token": "<|im_start|>", "chat_template": "{{ messages }}"}, {}, 1, "{{ messages }}"),
        ({"bos_token": {"content": "<|im_start|>"}}, {"chat_template.jinja": "a"}, 1, "a"),
        ({}, {"config.json": {"bos_token_id": 2}}, 2, None),
        ({}, {"config.json": {"bos_token_id": None}}, 0, None),
    ],
)  # fmt: skip
def test_first_and_last_token_and_the_chat_template_are_those_of_the_folder(
    save_tokenizer: Callable[[Path, list[str]], None],
    tmp_path: Path,
    config: dict[str, Any],
    files: dict[str, Any],
    begin: int,
    template: str | None,
):
    save_tokenizer(tmp_path, ["<|im_end|>", "<|im_start|>", "<|begin_of_text|>"])
    student = save_student(tmp_path / "student", tmp_path, "llama")
    files = {"tokenizer_config.json": config, **files}
    for name, content in files.items():
        path = student / name
        if isinstance(content, dict):
            content = json.dumps(json.loads(path.read_text()) | content)
        path.write_text(content)
    planted(student, tmp_path / "a.gguf")
    file = GGUFReader(tmp_path / "a.gguf")
    names = ("ggml.bos_token_id", "ggml.eos_token_id", "ggml.add_bos_token", "chat_template")
    fields = [file.get_field(f"tokenizer.{name}") for name in names]
    assert [field and field.contents() for field in fields] == [begin, 0, False, template]


def test_a_text_begins_in_llama_cpp_as_its_tokenizer_says(
    save_tokenizer: Callable[[Path, list[str]], None], begin_texts: Callable[[Path, str], int],
    tmp_path: Path,
):  # fmt: skip
    save_tokenizer(tmp_path, ["<|im_end|>", "<|im_start|>"])
    first = begin_texts(tmp_path, "<|im_start|>")
    student = save_student(tmp_path / "student", tmp_path, "llama")
    planted(student, tmp_path / "a.gguf")
    file = GGUFReader(tmp_path / "a.gguf")
    names = ("ggml.bos_token_id", "ggml.add_bos_token")
    fields = [file.get_field(f"tokenizer.{name}") for name in names]
    assert [field and field.contents() for field in fields] == [first, True]
    assert check_tokens(tmp_path / "a.gguf", student, [[5, 6, 7]]) == 5
    with opened(tmp_path / "a.gguf") as model:
        assert model.tokens("the city")[0] == first


WINDOWS = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
LINEAR_ROPE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("graph", "changes", "reason"),
    [
        ("bitnet", {"tie_word_embeddings": False}, "no head beside the embedding"),
        ("bitnet", {"hidden_act": "relu2"}, "hidden_act is relu2"),
        ("bitnet", {"attention_bias": True}, "has biases"),
        ("bitnet", {"intermediate_size": 100}, "intermediate_size is 100, no multiple of 32"),
        ("bitnet", {"rope_parameters": LINEAR_ROPE}, "rotary embeddings of type linear"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is gelu"),
        (
            "llama",
            {"attention_bias": True},
            "biases of k_proj, o_proj, q_proj, v_proj are not written",
        ),
        ("llama", {"rope_parameters": LINEAR_ROPE}, "rotary embeddings of type linear"),
        ("bitnet", {"rope_parameters": LLAMA3_ROPE}, "rotary embeddings of type llama3"),
        ("qwen3", {"head_dim": 12}, "num_attention_heads . head_dim is 48, no multiple of 32"),
        ("qwen3", WINDOWS, "windows of attention"),
    ],
)
def test_a_model_that_llama_cpp_has_no_graph_for_gets_no_file_and_the_reason(
    tokenizer: Path, tmp_path: Path, rows: Tensor, graph: str, changes: dict[str, Any], reason: str
):
    model = small(graph, **changes)
    save_model(tmp_path / "student", model, ternary(subln=graph == "bitnet"), tokenizer)
    facts = export_gguf(
        ExportSettings(), load_student(tmp_path / "student"), tmp_path, tokens_BT=rows
    )
    (found,) = facts["gguf_obstacles"]
    assert re.search(reason, found)
    asked = ExportSettings(gguf=["Q4_0"])
    with pytest.raises(UserError, match=f"export asks for Q4_0 in GGUF, and .*{reason}"):
        export_gguf(asked, load_student(tmp_path / "student"), tmp_path, tokens_BT=rows)
    with pytest.raises(UserError, match=r"llama.cpp cannot run this model"):
        write_gguf(
            tmp_path / "a.gguf",
            Student(tokenizer, model, ModelFormat()),
            BlockType.F32,
            BlockType.F32,
        )
    assert not list(tmp_path.rglob("*.gguf"))


def test_norms_of_queries_more_biases_and_another_way_to_split_text_are_obstacles(
    tokenizer: Path, tmp_path: Path
):
    assert "norms of queries" in llama_cpp_obstacles(dense("qwen3"), tokenizer, subln=True)[0]
    assert not llama_cpp_obstacles(dense("qwen3"), tokenizer, subln=False)
    qwen2 = dense("qwen2")
    assert not llama_cpp_obstacles(qwen2, tokenizer, subln=False)
    qwen2.set_submodule("model.layers.1.mlp.down_proj", torch.nn.Linear(256, 64))
    (found,) = llama_cpp_obstacles(qwen2, tokenizer, subln=False)
    assert found == "biases of down_proj are not written"
    mistral = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None))
    (found,) = llama_cpp_obstacles(mistral, tokenizer, subln=False)
    assert "its graph of mistral is not known here, only of llama, qwen2, qwen3" in found
    text = (tokenizer / "tokenizer.json").read_text()
    write_atomically(
        tmp_path / "tokenizer.json",
        text.replace('"add_prefix_space":false', '"add_prefix_space":true').replace(
            '"add_prefix_space": false', '"add_prefix_space": true'
        ),
    )
    (found,) = llama_cpp_obstacles(small(), tmp_path, subln=True)
    assert "splits text" in found


def test_without_llama_cpp_there_is_one_clear_sentence(
    student: Path, rows: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    llama_cpp._library.cache_clear()
    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda name: None)
    for asked in ({"gguf": [], "i2_s": True}, {"gguf": ["Q4_0"]}, {}):
        with pytest.warns(settings.MissingLlamaCppWarning, match="export would end with an error"):
            given = ExportSettings.model_validate(asked)
    ExportSettings(gguf=[]), ExportSettings(linear_class="none")  # nothing to check: no warning
    monkeypatch.setitem(sys.modules, "xllamacpp.xllamacpp", None)
    with pytest.raises(UserError, match=r"llama.cpp, which is not installed: pip install"):
        export_gguf(given, load_student(student), tmp_path, tokens_BT=rows)
    llama_cpp._library.cache_clear()


def test_another_interface_of_llama_cpp_is_refused(monkeypatch: pytest.MonkeyPatch):
    llama_cpp.require_llama_cpp()
    monkeypatch.setitem(llama_cpp._DEFAULTS, 3, 2)
    with pytest.raises(UserError, match=r"other parameters than are known here \(words \{3: 1\}\)"):
        llama_cpp.require_llama_cpp()


def test_a_scale_that_float16_does_not_hold_is_refused(student: Path, tmp_path: Path):
    made = load_student(student)
    with torch.no_grad():
        weight = made.model.get_submodule("model.layers.1.mlp.up_proj").get_parameter("weight")
        weight.mul_(1e-6)
    with pytest.raises(UserError, match=r"layers.1.mlp.up_proj.weight has a scale of .*, which fl"):
        write_gguf(tmp_path / "a.gguf", made, BlockType.Q4_0, BlockType.F32)


def test_the_command_goes_on_from_a_text(student: Path, tmp_path: Path):
    planted(student, tmp_path / "a.gguf")
    command = ["wrinklefree", "generate", str(tmp_path / "a.gguf"), "the city is", "--tokens", "9"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("the city is") and len(result.stdout) > len("the city is\n")
    long, absent = [*command[:-1], "999"], [*command[:2], "no.gguf", *command[3:]]
    for wrong, message in (long, "and 999 shall be new"), (absent, "no.gguf: no such file"):
        failed = subprocess.run(wrong, capture_output=True, text=True, check=False)
        assert failed.returncode == 2 and message in failed.stderr and not failed.stdout


def test_a_file_that_is_none_is_refused_in_the_words_of_llama_cpp(tmp_path: Path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + 60 * b"\0")
    with (
        pytest.raises(UserError, match=r"a.gguf: llama.cpp does not load it: .*\w"),
        opened(tmp_path / "a.gguf"),
    ):
        pass


def test_a_text_goes_on_greedily_over_the_cache_until_it_ends(student: Path, tmp_path: Path):
    model = planted(student, tmp_path / "a.gguf")
    tokenizer = load_tokenizer(student)
    ids = tokenizer.encode("the population of", add_special_tokens=False).ids
    count, plain = len(ids), with_codes_as_weights(model)
    while len(ids) < count + 20 and ids[-1] != 0:
        with torch.no_grad():
            ids.append(int(plain(torch.tensor([ids])).logits[0, -1].argmax()))
    expected = tokenizer.decode(ids[count:])
    with opened(tmp_path / "a.gguf", 64) as theirs:
        found = b"".join(theirs.generate("the population of", 20)).decode(errors="replace")
        assert found == expected
        with pytest.raises(
            UserError, match="has 0 tokens and 20 shall be new, .* a prompt of 1 to 44 tokens"
        ):
            list(theirs.generate("", 20))
