"""The ``export`` stage: the distilled student, and held-out text to check the written model on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from wrinklefree.downloads.settings import BaseSource
from wrinklefree.evaluate.likelihood import score_model
from wrinklefree.evaluate.settings import EvaluateSettings
from wrinklefree.export.card import add_data_to_card, add_losses_to_card
from wrinklefree.export.dequantized import export_dequantized
from wrinklefree.export.gguf_stage import export_gguf
from wrinklefree.export.hf import export_hf
from wrinklefree.export.llama_cpp import require_llama_cpp
from wrinklefree.export.settings import ExportSettings
from wrinklefree.export.student import load_student
from wrinklefree.mixture.loader import HeldOutData
from wrinklefree.mixture.rows import read_mixture

LONGEST_ROW = 256
"""Tokens of a row that files are compared on: logits of a large vocabulary take a megabyte each."""
_SCORED = EvaluateSettings(rows_per_domain=16, batch_size=4, prompts=["-"])
"""Rows of each domain that the losses of the model card are of."""


@torch.no_grad()
def export_student(
    settings: ExportSettings, model: Path, mixture: Path, folder: Path, base: BaseSource
) -> dict[str, Any]:
    """Write ``model`` to ``folder`` for stock transformers, with and without ternary layers, and as
    GGUF files for llama.cpp.

    ``README.md`` is its model card, which names ``base``, the dense model that it was made of;
    ``held_out`` in the facts is the loss there. Where no export is
    wanted, ``folder`` only says so. Errors are those of ``load_student``, ``export_hf``,
    ``export_dequantized`` and ``export_gguf``.
    """
    if settings.linear_class == "none":
        (folder / "README.md").write_text(
            "Nothing is exported: export.linear_class is none.\n", "utf-8"
        )
        return {}
    if settings.asks_for_gguf:
        require_llama_cpp()
    held_out = HeldOutData(mixture)
    rows = [
        batch.tokens_BT
        for domain in held_out.domains
        for batch in held_out.batches(domain, rows=1, batch_size=1)
    ]
    tokens_BT = torch.cat(rows)[:, :LONGEST_ROW]
    student = load_student(model)
    facts = export_hf(settings, student, folder, tokens_BT=tokens_BT)
    facts |= export_dequantized(settings, student, folder, tokens_BT=tokens_BT)
    facts |= export_gguf(settings, student, folder, tokens_BT=tokens_BT)
    weights = {domain.name: domain.weight for domain in read_mixture(mixture).domains}
    score = score_model("export", student.model, student.format, held_out, weights, _SCORED, seed=0)
    add_losses_to_card(folder, score, _SCORED.rows_per_domain)
    add_data_to_card(folder, model, mixture, base, settings.base_licence)
    return facts | {"held_out": score.overall.as_json()}
