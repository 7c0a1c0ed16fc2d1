"""Token files of one source."""

from typing import Any

from wrinklefree.data.tokenize import tokenize_source
from wrinklefree.tracking.stage import Stage, stage_main


def tokenize(stage: Stage) -> dict[str, Any]:
    return tokenize_source(stage.inputs["raw"], stage.inputs["tokenizer"], stage.folder)


if __name__ == "__main__":
    stage_main("tokenize", tokenize, inputs=["raw", "tokenizer"], instance="source")
