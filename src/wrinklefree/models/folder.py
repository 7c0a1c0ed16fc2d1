"""A model as a folder: plain transformers configuration, safetensors, our format, its tokenizer.

``config.json`` is that of the dense architecture, so the folder of a dense base also loads in
``AutoModelForCausalLM``. What we add to the architecture is in ``wrinklefree.json``.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from wrinklefree.errors import UserError
from wrinklefree.models.configuration import checked_config
from wrinklefree.models.finite import require_finite
from wrinklefree.models.surgery import insert_bitlinear, insert_subln
from wrinklefree.quant.bitlinear import ABSMEAN
from wrinklefree.quant.settings import QuantizerSettings

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
FORMAT = "wrinklefree.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)


@dataclass(frozen=True)
class DiffusionFormat:
    """How a block-diffusion model is to be read."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    block_size: Annotated[int, Field(ge=1)]
    token_shift: Literal["none", "noisy", "clean_boundary"]
    mask_token_id: Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class ModelFormat:
    """What a model has beyond its dense architecture."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    subln: bool = False
    """Norms before ``o_proj`` and ``down_proj``."""
    bitlinear: bool = False
    """Linear layers of the decoder quantize; the stored weights are the latent ones."""
    diffusion: DiffusionFormat | None = None
    quantizer: QuantizerSettings = ABSMEAN
    """How ``bitlinear`` layers quantize. In the file only where it is not absmean per tensor."""

    @property
    def kind(self) -> Kind | None:
        """Which of the models of the pipeline has this format; None if none has."""
        if (self.subln, self.bitlinear, self.diffusion) == (False, False, None):
            return "dense"
        if self.subln and self.bitlinear:
            return "ternary" if self.diffusion is None else "diffusion"
        return None


_FORMAT = TypeAdapter(ModelFormat)
Kind = Literal["dense", "ternary", "diffusion"]
_KINDS: dict[Kind, str] = {
    "dense": "a dense model (made by stage base)",
    "ternary": "an autoregressive model with SubLN and ternary layers (made by stages subln,"
    " stage2 and distill.ar)",
    "diffusion": "a block-diffusion model with SubLN and ternary layers (made by stages dlm and"
    " distill.dlm)",
}


def save_model(
    folder: Path, model: PreTrainedModel, model_format: ModelFormat, tokenizer: Path
) -> None:
    """Write ``model`` (float32) and the tokenizer of folder ``tokenizer`` into ``folder``.

    The same weights give the same bytes. Tied tensors are stored once, under their first name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(
        folder / WEIGHTS,
        {name: tensor.detach() for name, tensor in stored_tensors(model).items()},
    )
    write_json(folder / CONFIG, _plain_config(model))
    content = _FORMAT.dump_python(model_format, mode="json")
    if model_format.quantizer == ABSMEAN:
        del content["quantizer"]
    write_json(folder / FORMAT, content)
    copy_tokenizer(tokenizer, folder)


def load_model(folder: Path, *expected: Kind) -> tuple[PreTrainedModel, ModelFormat]:
    """The model of ``folder`` in float32, with SDPA attention, in evaluation mode.

    Parameters
    ----------
    expected : kinds of models that will do; any if there is none.

    Raises
    ------
    UserError : the model is of another kind, a file is missing or malformed, the tensors are not
        exactly those of the model, or they are not finite.
    """
    model_format = read_format(folder, *expected)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(
            read_config(folder), attn_implementation="sdpa", dtype=torch.float32
        )
    if model_format.subln:
        insert_subln(model)
    if model_format.bitlinear:
        insert_bitlinear(model, model_format.quantizer)
    model.tie_weights()
    _load_tensors(folder / WEIGHTS, stored_tensors(model))
    require_finite(model, str(folder))
    _check_mask_token(folder, model_format, model.config)
    return model.eval(), model_format


def read_format(folder: Path, *expected: Kind) -> ModelFormat:
    """``wrinklefree.json`` of a model folder, or a UserError that names the file.

    Parameters
    ----------
    expected : kinds of models that will do, of which it must be one; any if there is none.
    """
    path = folder / FORMAT
    content = _read_json(path)
    try:
        # As JSON, since in Python's own values a strict dataclass is no mapping.
        found = _FORMAT.validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))} is {problem['input']!r:.80}: {problem['msg']}"
            for problem in error.errors(include_url=False)
        )
        raise UserError(f"{path}: {problems}. Run the stage that makes the model again") from error
    absent = [name for name in ("subln", "bitlinear", "diffusion") if name not in content]
    quantizer = content.get("quantizer", QuantizerSettings.model_fields)
    absent += [
        f"quantizer.{name}" for name in QuantizerSettings.model_fields if name not in quantizer
    ]
    if absent:
        raise UserError(f"{path}: {absent[0]} is missing. Run the stage that makes the model again")
    if expected and found.kind not in expected:
        raise UserError(
            f"{folder}: by its {FORMAT} {_described(found)}; expected"
            f" {' or '.join(_KINDS[kind] for kind in expected)}"
        )
    return found


def read_config(folder: Path) -> PreTrainedConfig:
    """``config.json`` of a model folder, or a UserError that names the file, key and value."""
    return checked_config(_read_json(folder / CONFIG), str(folder / CONFIG))


def _described(model_format: ModelFormat) -> str:
    if kind := model_format.kind:
        return _KINDS[kind]
    return "a model that no stage makes, " + ", ".join(
        f"{name} {value}" for name, value in asdict(model_format).items()
    )


def _check_mask_token(folder: Path, model_format: ModelFormat, config: PreTrainedConfig) -> None:
    diffusion = model_format.diffusion
    if diffusion and diffusion.mask_token_id >= config.vocab_size:
        raise UserError(
            f"{folder / FORMAT}: diffusion.mask_token_id is {diffusion.mask_token_id}, but the"
            f" embedding ends at {config.vocab_size - 1}; run the stage that makes the model again"
        )


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer files of ``source``, and nothing else that lies there, to ``folder``."""
    if not (source / TOKENIZER).is_file():
        raise UserError(f"{source}: no {TOKENIZER}; expected the folder of a fast tokenizer")
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write ``tensors`` as safetensors, the same bytes for the same tensors."""
    contiguous = {name: tensors[name].cpu().contiguous() for name in sorted(tensors)}
    save_file(contiguous, path, metadata={"format": "pt"})
    path.chmod(0o644)  # It is written private to its owner, unlike every other file of an artifact.


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` with sorted keys."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def stored_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; one that has several names has its first."""
    first_names: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        first_names.setdefault(id(tensor), name)
    return {name: state[name] for name in first_names.values()}


def _plain_config(model: PreTrainedModel) -> dict[str, Any]:
    content = model.config.to_diff_dict()
    for key in list(content):
        # Where a base was loaded from, and how it was stored there, are not properties of it.
        if key in ("_name_or_path", "_model_name_or_path", "quantization_config", "auto_map"):
            del content[key]
    content["architectures"] = [type(model).__name__]
    content["dtype"] = "float32"
    return content


def _load_tensors(path: Path, parameters: dict[str, Tensor]) -> None:
    if not path.is_file():
        raise UserError(f"{path}: missing; weights are read from safetensors only")
    try:
        with safe_open(path, framework="pt") as file, torch.no_grad():
            _check_names(path, set(file.keys()), set(parameters))
            for name, parameter in parameters.items():
                tensor = file.get_tensor(name)
                if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
                    raise UserError(
                        f"{path}: {name} is {tensor.dtype} {list(tensor.shape)}, expected"
                        f" {parameter.dtype} {list(parameter.shape)} by {CONFIG}"
                    )
                parameter.copy_(tensor)
    except SafetensorError as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({error}); run the stage that makes the model"
            " again"
        ) from error


def _check_names(path: Path, found: set[str], expected: set[str]) -> None:
    if missing := sorted(expected - found):
        raise UserError(
            f"{path}: {missing[0]} is missing ({len(missing)} tensors are); the file does not"
            f" belong to the {CONFIG} and {FORMAT} beside it"
        )
    if unexpected := sorted(found - expected):
        raise UserError(
            f"{path}: {unexpected[0]} is unexpected ({len(unexpected)} tensors are); the file does"
            f" not belong to the {CONFIG} and {FORMAT} beside it"
        )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: missing; {path.parent} is not a model folder of this project")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content
