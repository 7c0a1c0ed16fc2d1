"""When an operation on a processor is done block by block."""

from __future__ import annotations

from torch import Tensor, nn

AT_ONCE = 2**16
"""Values that a cache holds beside what is made of them."""


def outgrows_cache(tensor: Tensor) -> bool:
    """Whether blocks of ``AT_ONCE`` values are faster: fresh memory is most of the time else.

    Tensors of other classes may have no memory at all, such as those that a plan is made with.
    """
    has_memory = tensor.device.type == "cpu" and type(tensor) in (Tensor, nn.Parameter)
    return has_memory and tensor.numel() > AT_ONCE
