"""A model as a folder: plain transformers configuration, safetensors, our format, its tokenizer.

``config.json`` is that of the dense architecture, so the folder of a dense base also loads in
``AutoModelForCausalLM``. What we add to the architecture is in ``wrinklefree.json``.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from wrinklefree.errors import UserError
from wrinklefree.models.configuration import checked_config
from wrinklefree.models.experts import IN_ORDER
from wrinklefree.models.finite import require_finite
from wrinklefree.models.state_space import reset_states
from wrinklefree.models.transforms import Kind, ModelFormat

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


AGAIN = "run the stage that makes the model again"
_KINDS: dict[Kind, str] = {
    "dense": "a dense model (made by stage base)",
    "ternary": "an autoregressive model with ternary layers (made by stages subln, stage2 and"
    " distill.ar)",
    "diffusion": "a block-diffusion model with ternary layers (made by stages dlm and distill.dlm)",
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
    write_json(folder / FORMAT, model_format.model_dump(mode="json"))
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
            read_config(folder), attn_implementation="sdpa", dtype=torch.float32, **IN_ORDER
        )
    try:
        model_format.apply(reset_states(model))
    except UserError as error:
        raise UserError(f"{folder / FORMAT}: {error}; {AGAIN}") from error
    model.tie_weights()
    _load_tensors(folder / WEIGHTS, stored_tensors(model))
    require_finite(model, str(folder))
    return model.eval(), model_format


def read_format(folder: Path, *expected: Kind) -> ModelFormat:
    """``wrinklefree.json`` of a model folder, or a UserError that names the file.

    Parameters
    ----------
    expected : kinds of models that will do, of which it must be one; any if there is none.
    """
    path = folder / FORMAT
    content = _read_json(path)
    if "transforms" not in content:
        raise UserError(
            f"{path}: transforms is missing: another version wrote it; run `make clean`, or {AGAIN}"
        )
    try:
        found = ModelFormat.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))} is {problem['input']!r:.80}: {problem['msg']}"
            for problem in error.errors(include_url=False)
        )
        raise UserError(f"{path}: {problems}; {AGAIN}") from error
    if (whole := found.model_dump(mode="json")) != content:  # A default may mean another tomorrow.
        raise UserError(f"{path}: something is missing; expected {json.dumps(whole)}; {AGAIN}")
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
    return f"a model that no stage makes, with {', '.join(model_format.names)}"


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
    """Write ``content`` with sorted keys; ValueError for a number that JSON has not (NaN)."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
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
    if math.inf in (content.get("time_step_limit") or ()):
        del content["time_step_limit"]  # transformers' default, for which JSON has no number
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
