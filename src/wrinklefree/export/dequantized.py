"""The student for tools that know no ternary layers: every code times its scale, in bfloat16.

All weights are rounded to bfloat16 (by 2e-3 of each at most, all codes of a matrix alike), and
nothing quantizes activations. So there are two comparisons. In float32 the written model must
compute what ours does with the very same weights and activations that are left alone: layer by
layer nothing but the order of sums differs. As it is used, in bfloat16, it is compared with our
ternary model, which tells what is lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from wrinklefree.export.card import add_dequantized_to_card
from wrinklefree.export.gate import check_tensors, compare_with_stock
from wrinklefree.export.hf import write_beside_weights
from wrinklefree.export.layouts import layout_of
from wrinklefree.export.reference import (
    distances,
    logits_of_rows,
    with_codes_as_weights,
)
from wrinklefree.export.settings import ExportSettings
from wrinklefree.export.student import Student
from wrinklefree.models.folder import WEIGHTS, stored_tensors, write_tensors
from wrinklefree.tracking.terminal import say

FOLDER = "dequantized"


def export_dequantized(
    settings: ExportSettings, student: Student, folder: Path, *, tokens_BT: Tensor
) -> dict[str, Any]:
    """Write ``student`` to ``dequantized`` in ``folder``, if the settings ask for it.

    Parameters
    ----------
    tokens_BT : int64 rows of real text, as for ``export_hf``.

    Returns
    -------
    facts : ``dequantized``: ``bytes`` of the weights, ``gate`` (see ``compare_with_stock``), and
        the ``distances`` in bfloat16 from our ternary model. ``dequantized_obstacle`` in its place
        where no class of transformers has the norms of the model.

    Raises
    ------
    RuntimeError : the folder does not hold our tensors, or does not compute what ours does.
    """
    if not settings.dequantized:
        return {}
    layout = layout_of(student)
    if layout.epsilon is not None:
        obstacle = (
            f"no class of transformers has both SubLN and what {layout.architecture} has beyond"
            " Llama; a model without SubLN (subln.gain: none) can be written"
        )
        say(f"export: no {FOLDER}: {obstacle}")
        return {"dequantized_obstacle": obstacle}
    target, plain = folder / FOLDER, with_codes_as_weights(student.model)
    round_weights(plain)
    target.mkdir(parents=True)
    tensors = {
        name: tensor.detach().bfloat16()
        for name, tensor in stored_tensors(plain).items()
        if not name.endswith(".alpha")  # a learned scale is in the weights
    }
    write_tensors(target / WEIGHTS, layout.place(tensors))
    write_beside_weights(target, student, layout.plain_config("bfloat16"))
    check_tensors(target, student.model, layout, torch.bfloat16)
    gate = compare_with_stock(plain, target, tokens_BT)
    stock = AutoModelForCausalLM.from_pretrained(target, attn_implementation="sdpa", dtype="auto")
    ternary = logits_of_rows(student.model, tokens_BT)
    found = distances(ternary, logits_of_rows(stock.eval(), tokens_BT))
    facts = {"bytes": (target / WEIGHTS).stat().st_size, **found, "gate": gate}
    add_dequantized_to_card(folder, facts)
    return {"dequantized": facts}


@torch.no_grad()
def round_weights(model: PreTrainedModel) -> None:
    """Round parameters to what bfloat16 holds, in place; they stay float32."""
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())
