"""``finetune``: a classification that models are trained for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from wrinklefree.distill.settings import DistillationWeights, RelationSettings
from wrinklefree.quant.settings import LambdaWarmupSettings
from wrinklefree.research.rows_training import RowsTraining
from wrinklefree.schema.section import (
    LONGEST_ROW,
    NonNegativeInt,
    PackageWord,
    Section,
    Sha256,
    Temperature,
)
from wrinklefree.train.distill_settings import DistillationSettings

FORMATS = (".jsonl", ".tab", ".tsv")


class LabelledFile(Section):
    """A file with a text and its label in every line.

    ``.jsonl``: an object each. ``.tab`` or ``.tsv``: fields between tabs, named in the first line.
    """

    path: str
    """The file; its path inside of the wheel where there is a package."""
    sha256: Sha256
    """Hash of the file, or of the wheel."""
    package: PackageWord | None = None
    """The package whose wheel holds the file."""
    version: PackageWord | None = None
    """Version of the package."""
    text: str = "text"
    """Name of the field that holds the text."""
    label: str = "label"
    """Name of the field that holds the label."""
    skip_lines: NonNegativeInt = 0
    """Lines to skip after the line of names, for ``.tab`` and ``.tsv``."""

    @model_validator(mode="after")
    def _can_be_found(self) -> Self:
        if (self.package is None) != (self.version is None):
            raise ValueError("package and version go together: give both or none")
        if Path(self.path).suffix not in FORMATS:
            raise ValueError(f"path {self.path}: expected a file that ends {', '.join(FORMATS)}")
        return self


class FinetuneDistillation(DistillationSettings):
    """What the dense model, trained for the same classification, teaches."""

    weights: DistillationWeights = DistillationWeights(logits=10.0)
    """Factors of the terms of the loss; 10 for the logits is the paper's."""
    temperature: Temperature = 5.0
    """Softens both distributions of the logits term; 5 is the paper's."""
    relations: RelationSettings | None = RelationSettings(heads=4, causal=True)
    """The relations term; needed unless its weight is 0."""


class FinetuneTraining(RowsTraining):
    """How every model is trained."""

    lambda_warmup: LambdaWarmupSettings = LambdaWarmupSettings(warmup_steps=0)
    """Quantization strength over steps; the models after stage 2 are ternary already."""


class FinetuneSettings(Section):
    """Models trained to classify, dense and ternary, as in BitDistill's tables (2510.13998)."""

    train: LabelledFile
    """Labelled texts to train on."""
    held_out: LabelledFile
    """Labelled texts to test on."""
    questions: Annotated[int, Field(gt=1, le=10**9)] = 500
    """Largest number of texts of ``held_out`` to test on, spread over all that it has."""
    sequence_length: Annotated[int, Field(gt=1, le=LONGEST_ROW)] = 128
    """Tokens of a row; longer texts are cut."""
    prompt: str = "\nLabel:"
    """What is written between a text and its label."""
    training: FinetuneTraining
    """How all of them are trained. The dense one is not quantized."""
    distillation: FinetuneDistillation = FinetuneDistillation()
    """Terms of the loss of the distilled model."""

    @model_validator(mode="after")
    def _the_teacher_reads_along(self) -> Self:
        if self.distillation.cached_logits:
            raise ValueError(
                "distillation.cached_logits is for rows of the mixture, which is not read here; set"
                " it to 0"
            )
        if self.distillation.universal:
            raise ValueError(
                "distillation.universal is for teachers with other tokenizers, and the dense model"
                " teaches here; leave it out"
            )
        return self
