"""Predictors that learn which tokens the routers of their layers choose.

Shapes: B rows, T tokens of a row, N tokens that are no padding.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from wrinklefree.models.depths import skipping_layers
from wrinklefree.train.objectives.inside import Looks
from wrinklefree.train.objectives.objective import Objective
from wrinklefree.train.objectives.question import Outputs

_WEIGHT = 0.01
"""AdamW takes the same steps with any, and gradients of this size are lost in the norm of all."""


class TokenChoices:
    """The cross-entropy (nats) of the predictors' answers, the mean over layers (arXiv 2404.02258,
    section 3.5). Its gradients reach the predictors alone.

    Metrics are means over layers and micro-batches, of tokens that are no padding:
    ``choice/computed``, the share that is computed now; ``choice/predicted``, the share that the
    predictors would compute; ``choice/agreement``, that of answers that are right.
    """

    name = "token_choice"

    def looks_at(self, model: PreTrainedModel) -> Looks:
        """All choices."""
        return Looks(choices=True)

    def read(self, outputs: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
        """The means, times the share of the micro-batch in the denominator."""
        real_BT = outputs.question.piece_BT >= 0
        layers = []
        for choice in outputs.inside[self.name].choices:
            logit_N, chosen_N = choice.logit_BT[real_BT], choice.chosen_BT[real_BT]
            truth_N, answer_N = chosen_N.to(logit_N.dtype), logit_N > 0
            loss = functional.binary_cross_entropy_with_logits(logit_N, truth_N)
            shares = (chosen_N, answer_N, answer_N == chosen_N)
            layers.append((loss, *(share_N.to(loss.dtype).mean() for share_N in shares)))
        loss, *measured = outputs.means_over_layers(layers)
        names = ("choice/computed", "choice/predicted", "choice/agreement")
        return loss, dict(zip(names, measured, strict=True))


def with_token_choices(objective: Objective, model: PreTrainedModel) -> Objective:
    """``objective``, and what predictors learn if layers of ``model`` leave tokens out."""
    if not skipping_layers(model):
        return objective
    return objective.with_own(TokenChoices(), _WEIGHT)
