"""The student's GGUF files, each read back and run by llama.cpp before it counts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from wrinklefree.export.blocks import BlockType
from wrinklefree.export.card import add_gguf_to_card, add_i2_s_to_card
from wrinklefree.export.gguf import write_gguf
from wrinklefree.export.gguf_gate import (
    Reference,
    check_float32,
    check_packed,
    check_tensors,
    check_tokens,
)
from wrinklefree.export.i2_s import check_i2_s
from wrinklefree.export.settings import I2_S_FILE, ExportSettings
from wrinklefree.export.student import Student
from wrinklefree.models.exportable import llama_cpp_obstacles, require_gguf
from wrinklefree.models.surgery import has_subln
from wrinklefree.tracking.terminal import say


def export_gguf(
    settings: ExportSettings, student: Student, folder: Path, *, tokens_BT: Tensor
) -> dict[str, Any]:
    """Write ``model-<type>.gguf`` into ``folder`` for every type of the settings, I2_S last.

    Parameters
    ----------
    tokens_BT : int64 rows of real text on which llama.cpp is compared with our model.

    Returns
    -------
    facts : ``gguf``, by type ``bytes``, how many ``matrices`` have which type, and what the gate
        found; with what ``check_float32`` says of the file without blocks, and ``texts`` that both
        tokenizers split alike. ``i2_s``: ``bytes`` and ``matrices`` of that file.
        ``gguf_obstacles`` in place of both where llama.cpp has no graph for the model.

    Raises
    ------
    UserError : llama.cpp is not installed, or has no graph for the model whose files are asked for
        by name.
    RuntimeError : a file does not hold our codes, or llama.cpp does not compute what ours does.
    """
    if not settings.asks_for_gguf:
        return {}
    model = student.model
    require_gguf(settings.model_dump(), model, student.folder, subln=has_subln(model))
    if obstacles := llama_cpp_obstacles(model, student.folder, subln=has_subln(model)):
        say(f"export: no GGUF file, llama.cpp would not run it: {'; '.join(obstacles)}")
        return {"gguf_obstacles": obstacles}
    reference = Reference(model, tokens_BT)
    facts: dict[str, Any] = {}
    embedding = BlockType[settings.gguf_embedding]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        exact = Path(scratch) / "model-F32.gguf"
        write_gguf(exact, student, BlockType.F32, BlockType.F32)
        facts |= check_float32(exact, reference)
        facts["texts"] = check_tokens(exact, student.folder, reference.rows)
    for name in settings.gguf_types:
        path = folder / f"model-{name}.gguf"
        matrices = write_gguf(path, student, BlockType[name], embedding)
        check_tensors(path, model)
        found = check_packed(path, reference)
        facts[name] = {"bytes": path.stat().st_size, "matrices": matrices, **found}
        say(
            f"export: {path.name}, {path.stat().st_size / 1e6:,.1f} MB, in llama.cpp: logits"
            f" within {found['relative_difference']:.2g} of their size, KL {found['kl']:.2g}"
        )
    if settings.gguf_types:
        add_gguf_to_card(folder, facts)
    if not settings.i2_s:
        return {"gguf": facts}
    path = folder / I2_S_FILE
    matrices = write_gguf(path, student, BlockType.I2_S, embedding)
    check_i2_s(path, model)
    add_i2_s_to_card(folder, path.stat().st_size)
    say(f"export: {path.name}, {path.stat().st_size / 1e6:,.1f} MB: read back, not run")
    return {"gguf": facts, "i2_s": {"bytes": path.stat().st_size, "matrices": matrices}}
