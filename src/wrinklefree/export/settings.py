"""``export``: the student for other tools."""

from __future__ import annotations

from typing import Literal

from wrinklefree.schema.section import Section


class ExportSettings(Section):
    """The distilled autoregressive student for other tools."""

    linear_class: Literal["bitlinear", "autobitlinear"] = "bitlinear"
    """Which of the two ternary layers of transformers loads the weights."""
