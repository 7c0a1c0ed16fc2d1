"""How evenly routers spread tokens over the experts of their layers.

Shapes: B rows, T tokens of a row, N tokens that are no padding, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from wrinklefree.models.experts import layers_with_experts
from wrinklefree.train.objectives.inside import Looks
from wrinklefree.train.objectives.objective import Objective
from wrinklefree.train.objectives.question import Outputs


class RouterBalance:
    """The load-balancing loss of Switch Transformers (arXiv 2101.03961, eq. 4), for several experts
    of a token: ``E sum f P``, the mean over layers, with ``f`` the tokens that an expert gets per
    token and ``P`` its mean probability.

    It is ``per_token`` where all experts get as much, and E at most. transformers takes the experts
    of all layers together, which lets each layer prefer others. Padding does not count.

    The metrics are means over layers and micro-batches, as it is: ``router/entropy`` of a token's
    distribution, in nats; ``router/busiest_share``, the share of tokens that take the expert that
    most take; ``router/dead_experts`` of a layer, which no token of a micro-batch takes.

    Parameters
    ----------
    per_token : experts that each token takes.
    """

    name = "router_balance"

    def __init__(self, per_token: int) -> None:
        self._per_token = per_token

    def looks_at(self, model: PreTrainedModel) -> Looks:
        """All routers."""
        return Looks(routers=True)

    def read(self, outputs: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
        """The means, times the share of the micro-batch in the denominator."""
        real_BT = outputs.question.piece_BT >= 0
        layers = [
            _spread(logits_BTE[real_BT], self._per_token)
            for logits_BTE in outputs.inside[self.name].router_logits_BTE
        ]
        balance, *measured = outputs.means_over_layers(layers)
        names = ("router/entropy", "router/busiest_share", "router/dead_experts")
        return balance, dict(zip(names, measured, strict=True))


def _spread(logits_NE: Tensor, per_token: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of one router the balance, entropy, share of the busiest expert and number of idle ones."""
    tokens, experts = logits_NE.shape
    wide = torch.promote_types(logits_NE.dtype, torch.float32)
    log_NE = functional.log_softmax(logits_NE, -1, dtype=wide)
    taken = logits_NE.topk(per_token).indices.flatten()
    share_E = taken.bincount(minlength=experts) / tokens
    balance = experts * (share_E * log_NE.exp().mean(0)).sum()
    entropy = -(log_NE.exp() * log_NE).sum(-1).mean()
    return balance, entropy, share_E.max(), (share_E == 0).sum().float()


def with_balanced_routers(objective: Objective, model: PreTrainedModel, weight: float) -> Objective:
    """``objective``, and if ``model`` has routers their balance with ``weight``."""
    if not layers_with_experts(model):
        return objective
    return objective.with_own(RouterBalance(model.config.num_experts_per_tok), weight)
