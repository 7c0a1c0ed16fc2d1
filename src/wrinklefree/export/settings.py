"""``export``: the student for other tools."""

from __future__ import annotations

from typing import Literal

from wrinklefree.schema.section import Section


class ExportSettings(Section):
    """The distilled autoregressive student for other tools."""

    linear_class: Literal["bitlinear", "autobitlinear", "none"] = "bitlinear"
    """Which of the two ternary layers of transformers loads the weights; ``none``: no export.

    Both have one scale per matrix.
    """
