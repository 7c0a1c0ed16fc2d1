from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
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

from wrinklefree.downloads.settings import ScratchBaseSettings
from wrinklefree.errors import UserError
from wrinklefree.export import hf
from wrinklefree.export.gate import check_tensors, compare_with_stock
from wrinklefree.export.hf import (
    export_hf,
    stock_config,
    write_beside_weights,
    write_tensors_for_stock,
)
from wrinklefree.export.layouts import layout_of
from wrinklefree.export.settings import ExportSettings
from wrinklefree.export.stage import export_student
from wrinklefree.export.student import load_student
from wrinklefree.models.folder import load_model, save_model
from wrinklefree.models.transforms import (
    DiffuseBlocks,
    InsertSubln,
    ModelFormat,
    ternary,
)
from wrinklefree.quant.packing import unpack_ternary
from wrinklefree.quant.settings import QuantizerSettings
from wrinklefree.quant.ternary import quantize_weight, ternary_codes

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit:DeprecationWarning"  # raised by torch itself
)
CLASSES = pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
TERNARY = ternary()
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def write_student(
    folder: Path, model: PreTrainedModel, model_format: ModelFormat = TERNARY
) -> Path:
    """The model folder of ``model`` after surgery, with norms and alphas that are not initial."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    (folder / "tokenizer").mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    (folder / "tokenizer" / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8"
    )
    model_format.apply(model)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        if name.endswith("alpha"):
            torch.nn.init.uniform_(parameter, 0.1, 0.3)
    save_model(folder / "model", model, model_format, folder / "tokenizer")
    return folder / "model"


def llama(**changes: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes}))


def export(
    student: Path, folder: Path, tokens_BT: Tensor, linear_class: str = "bitlinear"
) -> dict[str, Any]:
    settings = ExportSettings.model_validate({"linear_class": linear_class})
    return export_hf(settings, load_student(student), folder, tokens_BT=tokens_BT)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 97, (3, 21))


@CLASSES
@pytest.mark.parametrize("tied", [True, False])
def test_stock_transformers_computes_what_we_compute(
    tmp_path: Path, tokens: Tensor, linear_class: str, tied: bool
) -> None:
    student = write_student(tmp_path, llama(tie_word_embeddings=tied))
    facts = export(student, tmp_path / "out", tokens, linear_class)
    ours, _ = load_model(student)
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        difference = (stock(input_ids=tokens).logits - ours(input_ids=tokens).logits).abs().max()
        generated = stock.generate(tokens[:1], max_new_tokens=5, do_sample=False)
    assert type(stock).__name__ == "BitNetForCausalLM"
    assert stock.get_submodule("model.layers.0.mlp.down_proj").weight is not None
    assert (stock.lm_head.weight is stock.model.embed_tokens.weight) == tied
    assert difference.item() == pytest.approx(facts["gate"]["logits_max_difference"], abs=1e-6)
    assert facts["gate"]["greedy_tokens"] == 96
    assert generated.shape[1] > 21
    words = AutoTokenizer.from_pretrained(tmp_path / "out").convert_ids_to_tokens([5, 7])
    assert words == ["w5", "w7"]


def test_files_hold_the_codes_of_the_latent_weights_and_the_scale_each_class_wants(
    tmp_path: Path, tokens: Tensor
) -> None:
    student = write_student(tmp_path, llama())
    latent = load_file(student / "model.safetensors")["model.layers.1.mlp.down_proj.linear.weight"]
    codes, scale = ternary_codes(latent)
    factors = {"bitlinear": 1 / scale, "autobitlinear": scale}
    for linear_class, factor in factors.items():
        folder = tmp_path / linear_class
        export(student, folder, tokens, linear_class)
        stored = load_file(folder / "model.safetensors")
        assert torch.equal(unpack_ternary(stored["model.layers.1.mlp.down_proj.weight"]), codes)
        torch.testing.assert_close(
            stored["model.layers.1.mlp.down_proj.weight_scale"], factor.reshape(1)
        )
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert config["quantization_config"]["linear_class"] == linear_class
        assert "lm_head.weight" not in stored


def quantized(**quantizer: Any) -> ModelFormat:
    chosen = QuantizerSettings.model_validate(quantizer)
    return ternary(chosen)


@CLASSES
@pytest.mark.parametrize("scale", ["least_squares", "learned"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_other_scales_are_exported_as_the_model_computes_them(
    tmp_path: Path, tokens: Tensor, linear_class: str, scale: str, family: str
) -> None:
    model = llama() if family == "llama" else qwen2()
    student = write_student(tmp_path, model, quantized(scale=scale))
    facts = export(student, tmp_path / "out", tokens, linear_class)
    assert facts["gate"]["layer_relative_difference"] < 1e-2
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert not [name for name in stored if "alpha" in name]
    latent = load_file(student / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    written = stored[f"{name}_scale"].item()
    if linear_class == "bitlinear":
        written = 1 / written
    if scale == "learned":
        expected = latent[name.replace("weight", "alpha")].item() * 2 / 3
    else:
        expected = ternary_codes(latent[name], "least_squares")[1].item()
        assert expected != pytest.approx(ternary_codes(latent[name])[1].item(), rel=0.05)
    assert written == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scale", ["absmean", "learned"])
@pytest.mark.parametrize("granularity", ["head", "row", "group"])
def test_several_scales_per_matrix_are_refused(
    tmp_path: Path, tokens: Tensor, scale: str, granularity: str
) -> None:
    student = write_student(
        tmp_path,
        llama(intermediate_size=128),
        quantized(scale=scale, granularity=granularity, group_size=64),
    )
    with pytest.raises(UserError, match=f"scales per {granularity}, and a ternary layer of transf"):
        export(student, tmp_path / "out", tokens)
    assert not (tmp_path / "out").exists()


@CLASSES
def test_transformers_still_loads_one_scale_per_matrix_only(
    tmp_path: Path, tokens: Tensor, linear_class: str
) -> None:
    """Its layers would broadcast a scale per row, but its loader refuses the shape."""
    student = write_student(tmp_path, llama())
    export(student, tmp_path / "out", tokens, linear_class)
    file = tmp_path / "out" / "model.safetensors"
    stored = load_file(file)
    for name in [name for name in stored if name.endswith("weight_scale")]:
        rows = stored[name.removesuffix("_scale")].shape[0] * 4
        stored[name] = stored[name].repeat(rows)
    save_file(stored, file, metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_without_an_export_the_folder_says_so(tmp_path: Path) -> None:
    asked, nowhere = ExportSettings(linear_class="none"), tmp_path / "absent"
    base = ScratchBaseSettings(kind="scratch")
    assert export_student(asked, nowhere, nowhere, tmp_path, base) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert "export.linear_class is none" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_sizes_in_the_facts_are_those_of_the_files(tmp_path: Path, tokens: Tensor) -> None:
    student = write_student(tmp_path, llama())
    facts = export(student, tmp_path / "out", tokens)
    assert facts["float32_bytes"] == (student / "model.safetensors").stat().st_size
    assert facts["exported_bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    # Two bits instead of thirty-two, up to the header and the scales.
    saved = facts["float32_bytes"] - facts["exported_bytes"]
    assert saved == pytest.approx(facts["ternary_parameters"] * (4 - 1 / 4), rel=0.03)
    assert "force_eager" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_exporting_again_gives_the_same_bytes(tmp_path: Path, tokens: Tensor) -> None:
    student = write_student(tmp_path, llama())
    for name in "ab":
        export(student, tmp_path / name, tokens)
    first, second = (
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in "ab"
    )
    assert first == second


def write_quantized_floats(student: Path) -> None:
    """The mistake of exporting from floats that were quantized already."""
    tensors = load_file(student / "model.safetensors")
    for name in tensors:
        if name.endswith(("_proj.weight", "linear.weight")):
            tensors[name] = quantize_weight(tensors[name])
    save_file(tensors, student / "model.safetensors", metadata={"format": "pt"})


def test_quantized_floats_are_not_the_model(tmp_path: Path, tokens: Tensor) -> None:
    student = write_student(tmp_path, llama())
    ours, _ = load_model(student)
    write_quantized_floats(student)
    export(student, tmp_path / "out", tokens)
    with pytest.raises(RuntimeError, match="layer 0 in transformers differs"):
        compare_with_stock(ours, tmp_path / "out", tokens)


def mistral() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**{**SIZES, "head_dim": 16}))


def qwen2(**changes: Any) -> PreTrainedModel:
    model = Qwen2ForCausalLM(Qwen2Config(**{**SIZES, **changes}))
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
    return model


def qwen3(**changes: Any) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**{**SIZES, "head_dim": 32, **changes}))


@pytest.mark.parametrize(
    ("model", "linear_class"),
    [
        (qwen3, "bitlinear"),
        # Activations so small that the norms' epsilon is a quarter of their mean square.
        (lambda: qwen3(initializer_range=0.02, rms_norm_eps=1e-4), "autobitlinear"),
        (qwen2, "bitlinear"),
        (qwen2, "autobitlinear"),
        (lambda: llama(hidden_act="gelu", tie_word_embeddings=False), "bitlinear"),
    ],
)
def test_what_bitnet_has_no_place_for_is_exported_in_its_own_class(
    tmp_path: Path, tokens: Tensor, model: Callable[[], PreTrainedModel], linear_class: str
) -> None:
    student = write_student(tmp_path, model())
    facts = export(student, tmp_path / "out", tokens, linear_class)
    architecture = json.loads((student / "config.json").read_text())["architectures"][0]
    assert facts["architecture"] == architecture
    with torch.compiler.set_stance("force_eager"):
        stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(stock).__name__ == architecture
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"`{architecture}`" in card and "too small for float16" in card


@CLASSES
@pytest.mark.parametrize("make", [llama, qwen2, qwen3])
def test_a_model_without_subln_is_exported_in_its_own_class(
    tmp_path: Path, tokens: Tensor, make: Callable[[], PreTrainedModel], linear_class: str
) -> None:
    student = write_student(tmp_path, make(), ternary(subln=False))
    folder = tmp_path / "out"
    facts = export(student, folder, tokens, linear_class)
    ours, _ = load_model(student)
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        stock = AutoModelForCausalLM.from_pretrained(folder)
        difference = (stock(input_ids=tokens).logits - ours(input_ids=tokens).logits).abs().max()
    assert type(stock) is type(ours)
    assert difference.item() == pytest.approx(facts["gate"]["logits_max_difference"], abs=1e-6)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["quantization_config"]["use_rms_norm"] is False
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "norms before" not in card and "too small for float16" not in card


def flip_a_code(tensors: dict[str, Tensor]) -> None:
    packed = tensors["model.layers.1.self_attn.k_proj.weight"]
    packed[0, 0] = packed[0, 0] ^ (2 if packed[0, 0] & 3 == 2 else 1)  # 1 to -1, 0 and -1 by one


def scale_up(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.mlp.up_proj.weight_scale"] *= 1.01


def permute_rows(tensors: dict[str, Tensor]) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    tensors[name][[0, 1]] = tensors[name][[1, 0]]


def change_a_norm(tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"][3] *= 1 + 1e-6


def change_the_embedding(tensors: dict[str, Tensor]) -> None:
    tensors["model.embed_tokens.weight"][7, 7] += 1e-6


def add_a_tensor(tensors: dict[str, Tensor]) -> None:
    tensors["model.another"] = torch.zeros(1)


def lose_a_tensor(tensors: dict[str, Tensor]) -> None:
    del tensors["model.layers.0.input_layernorm.weight"]


def lose_a_value(tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"][3] = torch.nan


WITH_AND_WITHOUT_SUBLN = [
    *[(make, True) for make in (llama, qwen2, qwen3, partial(llama, hidden_act="gelu"))],
    *[(make, False) for make in (llama, qwen2, qwen3)],
]


@CLASSES
@pytest.mark.parametrize(("make", "subln"), WITH_AND_WITHOUT_SUBLN)
def test_a_single_wrong_value_in_the_file_is_found_in_every_architecture(
    tmp_path: Path, make: Callable[[], PreTrainedModel], subln: bool, linear_class: str
) -> None:
    student = load_student(write_student(tmp_path, make(), ternary(subln=subln)))
    settings, layout = ExportSettings(linear_class=linear_class), layout_of(student)
    folder = tmp_path / "out"
    write_tensors_for_stock(settings, layout, student.model, folder)
    write_beside_weights(folder, student, stock_config(settings, layout))
    check_tensors(folder, student.model, layout)
    whole = (folder / "model.safetensors").read_bytes()
    plants = {
        flip_a_code: r"out: 1 of \d+ values of model.layers.1.self_attn.k_proj.weight are not",
        scale_up: r"values of model.layers.0.mlp.up_proj.weight are not ours",
        permute_rows: r"values of model.layers.1.self_attn.o_proj.weight are not ours",
        change_a_norm: r"1 of 64 values of model.norm.weight are not ours",
        change_the_embedding: r"1 of 6208 values of model.embed_tokens.weight are not ours",
        add_a_tensor: r"model.another: not both in the file and of our model",
        lose_a_tensor: r"model.layers.0.input_layernorm.weight: not both",
        lose_a_value: r"1 of 64 values of model.norm.weight are not ours",
    }
    for spoil, said in plants.items():
        tensors = load(whole)
        spoil(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(RuntimeError, match=said):
            check_tensors(folder, student.model, layout)


def test_a_scale_of_up_that_subln_cancels_is_found_in_the_file_alone(
    tmp_path: Path, tokens: Tensor
) -> None:
    student, folder = write_student(tmp_path, llama()), tmp_path / "out"
    export(student, folder, tokens)
    tensors = load_file(folder / "model.safetensors")
    scale_up(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    compare_with_stock(load_model(student)[0], folder, tokens)


ROPE = {"rope_type": "default", "rope_theta": 100.0}


@CLASSES
@pytest.mark.parametrize(
    ("key", "value"), [("rms_norm_eps", 1e-2), ("hidden_act", "relu2"), ("rope_parameters", ROPE)]
)
def test_the_gate_sees_what_a_configuration_computes_otherwise(
    tmp_path: Path, tokens: Tensor, linear_class: str, key: str, value: object
) -> None:
    student, folder = write_student(tmp_path, llama()), tmp_path / "out"
    export(student, folder, tokens, linear_class)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {key: value}), encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"in transformers differs? from ours"):
        compare_with_stock(load_model(student)[0], folder, tokens)


@pytest.mark.parametrize(
    ("model", "model_format", "reason"),
    [
        (mistral, TERNARY, "architecture is mistral, none of llama, qwen2, qwen3"),
        (lambda: llama(rms_norm_eps=0.0), TERNARY, "rms_norm_eps is 0.0"),
        (
            lambda: llama(intermediate_size=99),
            TERNARY,
            "of layer 0 has 99 outputs, no multiple of 4",
        ),
        (lambda: llama(), ModelFormat().then(InsertSubln()), "a model that no stage makes"),
        (
            lambda: llama(),
            ternary().then(DiffuseBlocks(block_size=4, token_shift="none", mask_token_id=1)),
            "a block-diffusion model .* expected an autoregressive model with ternary layers",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused_with_the_reason(
    tmp_path: Path,
    tokens: Tensor,
    model: Callable[[], PreTrainedModel],
    model_format: ModelFormat,
    reason: str,
) -> None:
    student = write_student(tmp_path, model(), model_format)
    with pytest.raises(UserError, match=reason):
        export(student, tmp_path / "out", tokens)
    assert not (tmp_path / "out").exists()


def test_a_failing_gate_fails_the_export(
    tmp_path: Path, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = write_student(tmp_path, llama())
    monkeypatch.setattr(hf, "pack_ternary", lambda codes: hf_pack_reversed(codes))
    with pytest.raises(RuntimeError, match=r"values of .*q_proj.weight are not ours"):
        export(student, tmp_path / "out", tokens)


def hf_pack_reversed(codes: Tensor) -> Tensor:
    """Rows in the order that a reader of consecutive rows would expect."""
    quarters = (codes + 1).to(torch.uint8).reshape(-1, 4, codes.shape[1]).unbind(1)
    return torch.stack([quarter << (2 * i) for i, quarter in enumerate(quarters)]).sum(0).byte()


class _Largest(TorchDispatchMode):
    """Numbers of the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else (result,):
            if isinstance(made, Tensor) and made.is_floating_point():
                self.numbers = max(self.numbers, made.numel())
        return result


def test_logits_of_one_row_are_the_largest_that_a_comparison_makes(tmp_path: Path) -> None:
    vocabulary, length = 20_000, 30
    student, folder = write_student(tmp_path, llama(vocab_size=vocabulary)), tmp_path / "out"
    rows = torch.randint(0, 97, (5, length))
    export(student, folder, rows)
    with _Largest() as largest:
        compare_with_stock(load_model(student)[0], folder, rows)
    assert largest.numbers == max(length, 64) * vocabulary  # or the embedding
