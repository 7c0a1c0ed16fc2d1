"""``export``: the student for other tools."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from wrinklefree.schema.section import Section

GgufType = Literal["TQ2_0", "TQ1_0", "Q2_0", "Q4_0", "F32"]
I2_S_FILE = "model-I2_S.gguf"
"""The file for bitnet.cpp."""


class MissingLlamaCppWarning(UserWarning):
    """What the stage ``export`` needs is not there, which is better said before any training."""


class ExportSettings(Section):
    """The distilled autoregressive student for other tools."""

    linear_class: Literal["bitlinear", "autobitlinear", "none"] = "bitlinear"
    """Which of the two ternary layers of transformers loads the weights. Both have one scale per
    matrix. ``none``: no export."""
    dequantized: bool = False
    """Also write ``dequantized/``: the same model in plain bfloat16, codes times scales, for tools
    that know no ternary layers. Its activations are not quantized."""
    base_licence: Annotated[str, Field(min_length=1)] | None = None
    """Licence of a base that is brought (``base.source``), for the model card and the manifest;
    null: not known."""
    gguf: Literal["if_possible"] | list[GgufType] = "if_possible"
    """Types of the GGUF files for llama.cpp. A ternary weight takes 2.06 bits in ``TQ2_0``, 1.69 in
    ``TQ1_0``, 2.25 in ``Q2_0``, 4.5 in ``Q4_0`` and 32 in ``F32``. A matrix whose rows are no
    multiple of 256 (64 for ``Q2_0``) is always Q4_0.

    ``if_possible``: TQ2_0, or no file where llama.cpp has no graph for the model; the reason is
    printed. With a list of types the run ends there, before any training."""
    i2_s: bool = False
    """Also write ``model-I2_S.gguf`` for bitnet.cpp on x86: 2 bits a weight, one scale a matrix.
    Rows must be multiples of 128, else the run ends before any training. The file was not run in
    bitnet.cpp."""
    gguf_embedding: Literal["F16", "Q8_0", "F32"] = "F16"
    """Type of the embedding in these files, and of a head with weights of its own."""

    @field_validator("gguf")
    @classmethod
    def _each_once(cls, types: str | list[GgufType]) -> str | list[GgufType]:
        if isinstance(types, list) and len(set(types)) < len(types):
            raise ValueError("a type comes twice")
        return types

    @model_validator(mode="after")
    def _what_checks_files_is_there(self) -> Self:
        if said := missing_llama_cpp(self):
            warnings.warn(said, MissingLlamaCppWarning, stacklevel=2)
        return self

    @property
    def gguf_types(self) -> list[GgufType]:
        """Of the files that are written where llama.cpp has a graph for the model."""
        return ["TQ2_0"] if self.gguf == "if_possible" else self.gguf

    @property
    def asks_for_gguf(self) -> bool:
        """Whether any GGUF file is to be written, which llama.cpp then checks."""
        return self.linear_class != "none" and bool(self.gguf_types or self.i2_s)


def missing_llama_cpp(export: ExportSettings) -> str | None:
    """What to say where GGUF files are asked for and nothing is installed to check them."""
    if not export.asks_for_gguf or importlib.util.find_spec("xllamacpp"):
        return None
    return (
        "export.gguf: llama.cpp, which checks these files, is not installed, and the stage export"
        " would end with an error: pip install -c constraints.txt -e '.[gguf]', or export.gguf: []"
        " and no export.i2_s"
    )
