"""The ``subln`` stage: surgery on the dense base, and what it costs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wrinklefree.config.training import SublnSettings
from wrinklefree.errors import UserError
from wrinklefree.models.calibration import calibrate_subln
from wrinklefree.models.damage import mean_next_token_loss
from wrinklefree.models.folder import ModelFormat, load_model, save_model
from wrinklefree.models.surgery import insert_bitlinear, insert_subln

if TYPE_CHECKING:
    from wrinklefree.data.loader import Batch


def insert_subln_stage(
    settings: SublnSettings, base: Path, batches: Iterable[Batch], folder: Path
) -> dict[str, Any]:
    """Write the model of folder ``base`` with SubLN and ternary layers to ``folder``.

    Parameters
    ----------
    batches : real training rows; the first ``settings.calibration_rows`` of them are used, to fit
        the gains and to measure the damage.

    Returns
    -------
    facts : losses in nats per token. ``loss_before``: the dense base.
        ``loss_ternary_without_subln``: the base quantized naively. ``loss_after_lambda0`` and
        ``loss_after_lambda1``: with SubLN, not quantized and quantized. ``gains``: one entry per
        norm, see ``calibrate_subln``.

    Raises
    ------
    UserError : the base is not dense, or there are fewer rows than asked for.
    """
    rows = _first_rows(batches, settings.calibration_rows)
    model, model_format = load_model(base)
    if model_format != ModelFormat():
        raise UserError(f"{base}: expected a dense model, found {model_format}")
    facts: dict[str, Any] = {"gain": settings.gain, "calibration_rows": settings.calibration_rows}
    facts["loss_before"] = mean_next_token_loss(model, rows, 0.0)
    insert_bitlinear(model)
    facts["loss_ternary_without_subln"] = mean_next_token_loss(model, rows, 1.0)
    insert_subln(model)
    facts["gains"] = calibrate_subln(model, rows, settings.gain)
    facts["loss_after_lambda0"] = mean_next_token_loss(model, rows, 0.0)
    facts["loss_after_lambda1"] = mean_next_token_loss(model, rows, 1.0)
    save_model(folder, model, ModelFormat(subln=True, bitlinear=True), tokenizer=base)
    return facts


def _first_rows(batches: Iterable[Batch], count: int) -> list[Batch]:
    taken: list[Batch] = []
    left = count
    for batch in batches:
        taken.append(_head(batch, left))
        left -= taken[-1].tokens_BT.shape[0]
        if left == 0:
            return taken
    raise UserError(
        f"subln.calibration_rows is {count}, but there are only {count - left} rows; lower it"
    )


def _head(batch: Batch, count: int) -> Batch:
    tensors = {name: tensor[:count] for name, tensor in vars(batch).items()}
    return type(batch)(**tensors)
