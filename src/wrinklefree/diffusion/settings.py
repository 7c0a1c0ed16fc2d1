"""``dlm.diffusion``: block diffusion."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wrinklefree.schema.section import (
    LONGEST_ROW,
    Section,
)


class DiffusionSettings(Section):
    """Block diffusion: what is masked, how tokens are read, how the loss is weighted."""

    block_size: Annotated[int, Field(gt=0, le=LONGEST_ROW)]
    """Tokens that are denoised together."""
    mask_init: Literal["mean", "random", "zero"] = "mean"
    """Initial embedding of the mask token."""
    token_shift: Literal["none", "noisy", "clean_boundary"] = "clean_boundary"
    """From which position a token is predicted.

    ``none``: its own, in the noisy view. ``noisy``: the one before it, in the noisy view.
    ``clean_boundary``: the same, but in the clean view for the first token of a block.
    """
    loss_weighting: Literal["unit", "elbo"] = "unit"
    """``unit``: every masked token has the same weight. ``elbo``: the weights of the bound on the
    likelihood."""
    complementary_masks: bool = True
    """Also train on the tokens that are not masked, by a second view in which they are."""
