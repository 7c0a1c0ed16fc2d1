"""``gradient_ratios``: how strong the terms of a teacher are to be."""

from __future__ import annotations

from wrinklefree.schema.section import PositiveFloat, Section, Steps, StepsOrZero


class GradientRatioSettings(Section):
    """Strength of the terms as ratios: the norm of a term's gradient over the cross-entropy's.

    A term with a target here gets the weight that gives it that ratio, in place of the one in
    ``weights``. A ratio is measured in one more forward and backward pass per term.
    """

    logits: PositiveFloat | None = None
    """Target of the logits term."""
    relations: PositiveFloat | None = None
    """Target of the relations term."""
    hidden: PositiveFloat | None = None
    """Target of the hidden states."""
    steps: Steps = 10
    """Number of steps over which ratios are averaged to decide a weight: the first steps of the
    training, and the first at full strength again if quantization grows in it."""
    interval: StepsOrZero = 100
    """Steps between measurements of all ratios, which the history keeps. 0: only those that decide
    weights."""

    @property
    def targets(self) -> dict[str, float]:
        """By term."""
        named = {"logits": self.logits, "relations": self.relations, "hidden": self.hidden}
        return {name: target for name, target in named.items() if target is not None}
