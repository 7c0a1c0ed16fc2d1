"""The whole of ``params.yaml`` and the rules that span its sections."""

from __future__ import annotations

from pydantic import Field, model_validator

from wrinklefree.config.outcome import EvaluateSettings, ExportSettings
from wrinklefree.config.section import Name, Section
from wrinklefree.config.sources import HeldOutSettings, Source
from wrinklefree.config.tokens import MixtureSettings, TokenizerSettings
from wrinklefree.config.training import (
    BaseSettings,
    DistillStudents,
    DlmSettings,
    QuantizedTrainingSettings,
    SublnSettings,
)


class Parameters(Section):
    """Every knob of the pipeline, a section per stage."""

    seed: int
    held_out: HeldOutSettings
    sources: dict[Name, Source] = Field(min_length=1)
    tokenizer: TokenizerSettings
    mixture: MixtureSettings
    base: BaseSettings
    subln: SublnSettings
    stage2: QuantizedTrainingSettings
    dlm: DlmSettings
    distill: DistillStudents
    evaluate: EvaluateSettings
    export: ExportSettings

    @model_validator(mode="after")
    def _weights_match_domains(self) -> Parameters:
        domains = {source.domain for source in self.sources.values()}
        weighted = set(self.mixture.weights)
        if missing := sorted(weighted - domains):
            raise ValueError(
                f"mixture.weights names {', '.join(missing)}, but no source has that domain;"
                f" domains of the sources: {', '.join(sorted(domains))}"
            )
        if unused := sorted(domains - weighted):
            raise ValueError(
                f"mixture.weights lacks {', '.join(unused)}; give the domain a weight"
                " (0 leaves it out of training) or remove its source"
            )
        return self

    @model_validator(mode="after")
    def _blocks_fit_rows(self) -> Parameters:
        block, row = self.dlm.diffusion.block_size, self.mixture.sequence_length
        if block > row:
            raise ValueError(
                f"dlm.diffusion.block_size is {block}, but a row has only"
                f" mixture.sequence_length {row} tokens; lower the one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _tokenizer_matches_base(self) -> Parameters:
        kind = self.base.source.kind
        scratch = kind == "scratch"
        if scratch and self.tokenizer.kind == "base":
            raise ValueError(
                "tokenizer.kind is base, but base.source.kind is scratch, which has no tokenizer;"
                " use tokenizer.kind: bpe"
            )
        if not scratch and self.tokenizer.kind == "bpe":
            raise ValueError(
                f"tokenizer.kind is bpe, but base.source.kind is {kind}: a pretrained model's"
                " embeddings fit its own vocabulary only; use tokenizer.kind: base"
            )
        return self
