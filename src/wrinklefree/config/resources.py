"""What a cluster is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

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


class ResourcesSettings(Section):
    """What a cluster is asked for. No stage reads it, no result depends on it."""

    model_parameters: PositiveInt | None = None
    """Size of the model of ``base.source``, for memory; null: counted if from scratch, else 10⁹."""
    gpus: Literal[0, 1] = 0
    """GPUs of each stage that trains or runs the model."""


def model_parameters(parameters: Parameters) -> int:
    """How many weights the model has, as set or as ``base.scratch`` says."""
    if given := parameters.resources.model_parameters:
        return given
    if not parameters.base.scratch or parameters.tokenizer.kind != "bpe":
        return UNKNOWN_MODEL
    shape = parameters.base.scratch.model
    keys = shape.hidden_size * shape.key_value_heads // shape.heads
    attention = 2 * shape.hidden_size * (shape.hidden_size + keys)
    layer = attention + 3 * shape.hidden_size * shape.intermediate_size
    return shape.layers * layer + 2 * parameters.tokenizer.vocabulary_size * shape.hidden_size


def model_memory_mb(parameters: Parameters) -> int:
    """Megabytes of main memory in which any stage of the model's has room.

    On a CPU that includes what a step keeps for its backward pass: of each token about
    ``8 N^(2/3)`` bytes for ``N`` parameters, as depth and width grow together. The diffusion
    stages read a row as it is and as it is masked, hence twice the tokens.
    """
    weights = model_parameters(parameters)
    needed = weights * _BYTES_PER_PARAMETER
    if not parameters.resources.gpus:
        trainings = [parameters.stage2, parameters.dlm, parameters.distill.ar]
        trainings.append(parameters.distill.dlm)
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
