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
    """Steps over whose mean ratio a target's weight is decided: the first of the training, and
    where quantization grows in it once more, the first at its full strength."""
    interval: StepsOrZero = 100
    """Steps between measurements of all ratios, in the history; 0: only those that decide."""

    @property
    def targets(self) -> dict[str, float]:
        """By term."""
        named = {"logits": self.logits, "relations": self.relations, "hidden": self.hidden}
        return {name: target for name, target in named.items() if target is not None}
