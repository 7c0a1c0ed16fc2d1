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
    """From which row a token is predicted.

    ``none``: its own noisy row. ``noisy``: the noisy row before it. ``clean_boundary``: the same,
    but the clean row before it for the first token of a block.
    """
    loss_weighting: Literal["unit", "elbo"] = "unit"
    """``unit``: every masked token counts alike. ``elbo``: by the bound on the likelihood."""
    complementary_masks: bool = True
    """Train on the unmasked half as well, masked in a second view."""
