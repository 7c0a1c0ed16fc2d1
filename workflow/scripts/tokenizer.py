"""The tokenizer: a BPE trained on the cleaned text, or the base model's own."""

from typing import Any

from wrinklefree.downloads.settings import BaseSource
from wrinklefree.tokens.settings import BpeTokenizerSettings, TokenizerSettings
from wrinklefree.tokens.tokenizer import vocabulary_size
from wrinklefree.tokens.train_bpe import train_tokenizer
from wrinklefree.tracking.stage import Stage, stage_main


def tokenizer(stage: Stage) -> dict[str, Any]:
    settings = stage.section("tokenizer", TokenizerSettings)
    if isinstance(settings, BpeTokenizerSettings):
        return train_tokenizer(settings, stage.collection("documents"), stage.folder)
    from wrinklefree.tokens.base_tokenizer import tokenizer_of_base

    base = stage.section("base.source", BaseSource)
    tokenizer_of_base(base, stage.folder, cache=stage.downloads)
    return {"vocabulary_size": vocabulary_size(stage.folder)}


if __name__ == "__main__":
    stage_main("tokenizer", tokenizer, collections=["documents"])
