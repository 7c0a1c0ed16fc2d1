"""The ``export`` stage: the distilled student, and held-out text to check the written model on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from wrinklefree.export.card import add_data_to_card
from wrinklefree.export.dequantized import export_dequantized
from wrinklefree.export.gguf_stage import export_gguf
from wrinklefree.export.hf import export_hf
from wrinklefree.export.llama_cpp import require_llama_cpp
from wrinklefree.export.settings import ExportSettings
from wrinklefree.mixture.loader import HeldOutData


def export_student(
    settings: ExportSettings, model: Path, mixture: Path, folder: Path
) -> dict[str, Any]:
    """Write ``model`` to ``folder`` for stock transformers, with and without ternary layers, and as
    GGUF files for llama.cpp.

    Where no export is wanted, ``folder`` only says so. Errors are those of ``export_hf``,
    ``export_dequantized`` and ``export_gguf``.
    """
    if settings.linear_class == "none":
        (folder / "README.md").write_text(
            "Nothing is exported: export.linear_class is none.\n", "utf-8"
        )
        return {}
    if settings.gguf:
        require_llama_cpp()
    held_out = HeldOutData(mixture)
    rows = [
        batch.tokens_BT
        for domain in held_out.domains
        for batch in held_out.batches(domain, rows=1, batch_size=1)
    ]
    tokens_BT = torch.cat(rows)
    facts = export_hf(settings, model, folder, tokens_BT=tokens_BT)
    facts |= export_dequantized(settings, model, folder, tokens_BT=tokens_BT)
    facts |= export_gguf(settings, model, folder, tokens_BT=tokens_BT)
    add_data_to_card(folder, model, mixture)
    return facts
