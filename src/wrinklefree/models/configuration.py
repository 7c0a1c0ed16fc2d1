"""What ``config.json`` of a model may say: checked before any memory is asked for.

transformers takes most numbers as they come. A wrong one then ends in a traceback of torch, in all
of the memory, or in a training whose loss is not finite.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers import __version__ as transformers_version
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from wrinklefree.errors import UserError
from wrinklefree.schema.load import validate_section

_Width = Annotated[int, Field(ge=1, le=2**20)]
_Heads = Annotated[int, Field(ge=1, le=2**16)]
_MIN_THETA, _MAX_THETA = 1.0, 1e12
"""Bounds of the rotary base: below, frequencies overflow; above, they are zero."""
_BYTES = 4


class _Sizes(BaseModel):
    """The numbers that shapes and norms are made of; other keys are the architecture's affair."""

    model_config = ConfigDict(strict=True, extra="ignore")

    hidden_size: _Width | None = None
    intermediate_size: _Width | None = None
    head_dim: _Width | None = None
    num_hidden_layers: Annotated[int, Field(ge=1, le=1000)] | None = None
    num_attention_heads: _Heads | None = None
    num_key_value_heads: _Heads | None = None
    num_experts: _Heads | None = None
    num_experts_per_tok: _Heads | None = None
    moe_intermediate_size: _Width | None = None
    vocab_size: Annotated[int, Field(ge=1, le=2**24)] | None = None
    max_position_embeddings: Annotated[int, Field(ge=1, le=2**31)] | None = None
    rms_norm_eps: Annotated[float, Field(ge=0, le=1)] | None = None
    initializer_range: Annotated[float, Field(ge=0, le=1000)] | None = None

    @model_validator(mode="after")
    def _heads_fit(self) -> _Sizes:
        heads, shared = self.num_attention_heads, self.num_key_value_heads
        if self.hidden_size and heads and not self.head_dim and self.hidden_size % heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {heads}"
            )
        if heads and shared and heads % shared:
            raise ValueError(
                f"num_attention_heads {heads} is no multiple of num_key_value_heads {shared}"
            )
        experts, taken = self.num_experts, self.num_experts_per_tok
        if experts and taken and taken > experts:
            raise ValueError(f"num_experts_per_tok {taken} is more than num_experts {experts}")
        return self


def checked_config(content: dict[str, Any], where: str) -> PreTrainedConfig:
    """The configuration in ``content``, for a model that fits into the memory of this machine.

    Arguments are those of :func:`planned_config`, which raises the other errors.

    Raises
    ------
    UserError : sizes beyond the machine's memory; it names them.
    """
    config = planned_config(content, where)
    require_memory(config, where)
    return config


def planned_config(content: Any, where: str) -> PreTrainedConfig:
    """The configuration in ``content``, of a model of any size.

    Parameters
    ----------
    where : what errors begin with, such as the path of the file.

    Raises
    ------
    UserError : an architecture that transformers doesn't have or a number that can't be; it names
        key and value.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected a mapping of sizes; put back the model's own file")
    content = dict(content)
    kind = content.pop("model_type", None)
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UserError(f"{where}: {_unknown_architecture(kind, 'auto_map' in content)}")
    names = {**{name: name for name in _Sizes.model_fields}, **CONFIG_MAPPING[kind].attribute_map}
    sizes = {name: content[names[name]] for name in _Sizes.model_fields if names[name] in content}
    validate_section(_Sizes, sizes, where)
    _check_numbers(content, where)
    try:
        config = AutoConfig.for_model(kind, **content)
    except Exception as error:  # each architecture has checks of its own, of many types
        raise UserError(
            f"{where}: not a configuration of the architecture {kind}"
            f" ({' '.join(str(error).split())}); put back the file that came with the model"
        ) from error
    return config


def require_memory(config: PreTrainedConfig, where: str) -> None:
    """Raise a UserError unless a model of ``config`` fits in float32 into the machine's memory."""
    try:
        with torch.device("meta"), no_init_weights():
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        raise UserError(
            f"{where}: no causal language model can be built of it ({type(error).__name__}:"
            f" {' '.join(str(error).split())}); put back the file that came with the model"
        ) from error
    needed, present = _BYTES * sum(p.numel() for p in model.parameters()), machine_memory()
    if needed > present:
        names = ("hidden_size", "num_hidden_layers", "vocab_size")
        sizes = ", ".join(f"{name} {getattr(config, name, 'absent')}" for name in names)
        raise UserError(
            f"{where}: its sizes make a model of {needed / 1e9:,.0f} GB in float32, and this"
            f" machine has {present / 1e9:,.0f} GB of memory; correct the sizes"
            f" ({sizes}, …) or take a larger machine"
        )


def machine_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _unknown_architecture(kind: Any, has_code: bool) -> str:
    if has_code:
        return (
            f"model_type {kind!r} is an architecture of the model's own code (auto_map), and this"
            " project runs no code of a model. Use a model of an architecture that transformers"
            " itself has, such as llama, qwen2 or qwen3; if this is one under another name, write"
            " that to model_type and remove auto_map"
        )
    found = "is missing" if kind is None else f"is {kind!r}"
    return (
        f"model_type {found}; expected an architecture that transformers {transformers_version}"
        " has, such as llama, qwen2 or qwen3"
    )


def _check_numbers(content: dict[str, Any], where: str) -> None:
    for path, value in _leaves(content, ()):
        name = ".".join(path)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}: {name} is {value}; expected a finite number")
        if path[-1] != "rope_theta":
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and _MIN_THETA <= value <= _MAX_THETA):
            raise UserError(
                f"{where}: {name} is {value!r}; expected a number from {_MIN_THETA:g} to"
                f" {_MAX_THETA:g}, without which positions are not finite (10000 is usual)"
            )


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(keys, value) of everything in nested mappings and lists."""
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in entries:
            yield from _leaves(child, (*path, str(key)))
    elif path:
        yield path, value
