"""What a cluster is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from wrinklefree.models.settings import ModelSettings
from wrinklefree.schema.section import PositiveInt, Section

if TYPE_CHECKING:
    from wrinklefree.config.parameters import Parameters

UNKNOWN_MODEL = 1_000_000_000
"""Parameters that a brought model is taken to have if nobody says."""
_FIXED_MB = 3000
"""Libraries, tokenizer, rows: the stages of models of a few million parameters need 2,300."""
_BYTES_PER_PARAMETER = 20
"""Weights, gradient and two moments in fp32, and a frozen teacher or a copy for a checkpoint."""

_BYTES_PER_TOKEN = 2
"""Hashes of documents and paragraphs, and where each document lies; text itself is streamed."""


class ModelShape(Section):
    """The sizes of a brought model, under the names of its ``config.json``."""

    model_type: Literal["llama", "qwen2", "qwen3", "qwen3_moe"]
    """The architecture."""
    hidden_size: PositiveInt
    """Features of a token between layers."""
    intermediate_size: PositiveInt
    """Features inside the feed-forward network."""
    num_hidden_layers: PositiveInt
    """Decoder layers."""
    num_attention_heads: PositiveInt
    """Attention heads of queries."""
    num_key_value_heads: PositiveInt
    """Attention heads of keys and values."""
    head_dim: PositiveInt
    """Features of a head."""
    vocab_size: PositiveInt
    """Rows of the embedding."""
    tie_word_embeddings: bool
    """Whether the embedding is the head too."""
    num_experts: PositiveInt | None = None
    """Experts of a layer; of a qwen3_moe only, as the next two."""
    num_experts_per_tok: PositiveInt | None = None
    """Experts that a token takes."""
    moe_intermediate_size: PositiveInt | None = None
    """Features inside of an expert."""

    @model_validator(mode="after")
    def _experts_are_described(self) -> Self:
        given = (self.num_experts, self.num_experts_per_tok, self.moe_intermediate_size)
        has_experts = self.model_type == "qwen3_moe"
        if None in given if has_experts else any(given):
            raise ValueError(
                f"model_type is {self.model_type}: num_experts, num_experts_per_tok and"
                f" moe_intermediate_size are {'required' if has_experts else 'to be left out'}"
            )
        return self

    @classmethod
    def of_scratch(cls, model: ModelSettings, vocabulary_size: int) -> Self:
        """The shape that ``base.scratch.model`` gives, were there attention in every layer."""
        experts = model.experts
        return cls(
            model_type="qwen3_moe" if experts else "llama",
            num_experts=experts and experts.count,
            num_experts_per_tok=experts and experts.per_token,
            moe_intermediate_size=experts and experts.intermediate_size,
            hidden_size=model.hidden_size,
            intermediate_size=model.intermediate_size,
            num_hidden_layers=model.layers,
            num_attention_heads=model.heads,
            num_key_value_heads=model.key_value_heads,
            head_dim=model.hidden_size // model.heads,
            vocab_size=vocabulary_size,
            tie_word_embeddings=not model.scaled_embedding,
        )

    @property
    def parameters(self) -> int:
        """How many weights the dense model has, all but those of norms and biases."""
        heads = 2 * (self.num_attention_heads + self.num_key_value_heads)
        features = 3 * self.intermediate_size
        if self.num_experts and self.moe_intermediate_size:
            features = self.num_experts * (3 * self.moe_intermediate_size + 1)
        layer = self.hidden_size * (heads * self.head_dim + features)
        embeddings = self.vocab_size * self.hidden_size
        return self.num_hidden_layers * layer + embeddings * (2 - self.tie_word_embeddings)


class ResourcesSettings(Section):
    """What a cluster is asked for. No stage reads it, no result depends on it."""

    model_parameters: PositiveInt | None = None
    """Number of parameters of ``base.source``, from which memory follows. Default: that of
    ``model`` or ``base.scratch``, else 10⁹."""
    model: ModelShape | None = None
    """Shape of that model. It gives the number of parameters too, and ``wrinklefree plan`` needs
    it."""
    gpus: Literal[0, 1] = 0
    """GPUs of each stage that trains or runs the model."""

    @model_validator(mode="after")
    def _one_says_the_size(self) -> Self:
        if self.model and self.model_parameters:
            raise ValueError("model and model_parameters both give the model's size; leave out one")
        return self


def model_shape(parameters: Parameters) -> ModelShape | None:
    """The shape of the dense model, as far as the settings say."""
    if not (scratch := parameters.base.scratch):
        return parameters.resources.model
    if parameters.tokenizer.kind != "bpe":
        return None
    return ModelShape.of_scratch(scratch.model, parameters.tokenizer.vocabulary_size)


def model_parameters(parameters: Parameters) -> int:
    """How many weights the model has, as set or as its shape says."""
    if given := parameters.resources.model_parameters:
        return given
    if not (shape := model_shape(parameters)):
        return UNKNOWN_MODEL
    scratch = parameters.base.scratch
    return shape.parameters + (scratch.model.more_in_mixers if scratch else 0)


def reconstruction_bytes(parameters: Parameters) -> int:
    """What ``subln.reconstruct`` holds in main memory of its rows beside the model.

    The hidden states of both models in float32, and what every layer gets beside them: a mask of a
    byte for two tokens of a row, and the rotary embedding.
    """
    chosen, length = parameters.subln.reconstruct, parameters.mixture.sequence_length
    if chosen.kind == "none":
        return 0
    shape = model_shape(parameters)
    # Twice the edge of a cube: from 135 M to 4 B parameters models are 1.1 to 1.6 times as wide.
    width = shape.hidden_size if shape else round(2 * model_parameters(parameters) ** (1 / 3))
    head = shape.head_dim if shape else 128
    return chosen.rows * length * (2 * 4 * width + length + 2 * 4 * head)


def model_memory_mb(parameters: Parameters) -> int:
    """Megabytes of main memory in which any stage of the model's has room.

    On a CPU that includes what a step keeps for its backward pass: of each token about
    ``8 N^(2/3)`` bytes for ``N`` parameters, as depth and width grow together. The diffusion
    stages read a row as it is and as it is masked, hence twice the tokens.
    """
    weights = model_parameters(parameters)
    needed = weights * _BYTES_PER_PARAMETER + reconstruction_bytes(parameters)
    if not parameters.resources.gpus:
        trainings = [parameters.stage2, parameters.distill.ar]
        if parameters.dlm.enabled:
            trainings += [parameters.dlm, parameters.distill.dlm]
        if parameters.base.scratch:
            trainings.append(parameters.base.scratch.training)
        rows = max(training.batch_size for training in trainings)
        tokens = 2 * rows * parameters.mixture.sequence_length
        needed += int(tokens * 8 * weights ** (2 / 3))
    return _FIXED_MB + needed // 1_000_000


def data_memory_mb(parameters: Parameters, source: str | None = None) -> int:
    """Megabytes that a data stage needs for what it has seen of a source, or of all of them."""
    sources = [parameters.sources[source]] if source else parameters.sources.values()
    return sum(one.max_tokens or 0 for one in sources) * _BYTES_PER_TOKEN // 1_000_000
