"""Heads that predict tokens behind the next one from the same hidden state.

Each is a residual block before the model's own head, ``h + silu(W h)``, as in Medusa
(arXiv 2401.10774, section 2.1.1); with ``W = 0`` it says what the next token's head says. They are
trained beside the next token (arXiv 2404.19737) and are no part of the model: a folder has them in
a file of their own, so that whatever reads the model reads it without them.

Shapes: N hidden states, D hidden size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.models.depths import refuse_skipping
from wrinklefree.models.folder import AGAIN, write_tensors
from wrinklefree.models.state_space import refuse_states

FILE = "future_heads.safetensors"
_NAME = "future_heads"


def attach_future_heads(model: PreTrainedModel, count: int) -> None:
    """Give ``model`` new heads, for the tokens 2, 3, … ``count + 1`` places ahead, in place of any.

    A ``count`` of 0 leaves it without.

    Raises
    ------
    UserError : a guess that was wrong can't be taken out of the model's states, or several tokens
        not be read behind a cache.
    """
    if count:
        refuse_states(
            model, "wrong guesses can't be taken out of them; set future_tokens.heads to 0"
        )
        refuse_skipping(model, "guesses can't be checked; set future_tokens.heads to 0")
    if hasattr(model, _NAME):
        delattr(model, _NAME)
    if count:
        size = model.config.hidden_size
        heads = [nn.Linear(size, size, bias=False) for _ in range(count)]
        for head in heads:
            nn.init.zeros_(head.weight)
        model.add_module(_NAME, nn.ModuleList(heads).to(model.device, model.dtype))


def future_heads(model: PreTrainedModel) -> list[nn.Module]:
    """The heads of ``model`` in order; none if it has none."""
    return list(getattr(model, _NAME, ()))


def future_states(head: nn.Module, hidden_ND: Tensor) -> Tensor:
    """What the model's own head makes the logits of ``head`` of, [N, D]."""
    return hidden_ND + functional.silu(head(hidden_ND))


def read_future_heads(folder: Path, model: PreTrainedModel) -> int:
    """Give ``model`` the heads of a model folder, and return how many these are.

    Raises
    ------
    UserError : they are of another model.
    """
    if not (path := folder / FILE).is_file():
        return 0
    tensors = load_file(path)
    attach_future_heads(model, len(tensors))
    heads: Any = getattr(model, _NAME)
    try:
        heads.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"{path}: its heads are not those of the model beside it; {AGAIN}"
        ) from error
    return len(tensors)


def write_future_heads(folder: Path, model: PreTrainedModel) -> None:
    """Take the heads off ``model``, if it has any, and write them into its folder."""
    if heads := future_heads(model):
        weights = [head.get_parameter("weight").detach() for head in heads]
        tensors = {f"{number}.weight": weight for number, weight in enumerate(weights)}
        write_tensors(folder / FILE, tensors)
        attach_future_heads(model, 0)
