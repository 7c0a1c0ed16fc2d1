"""When an operation on a processor is done block by block."""

from __future__ import annotations

from torch import Tensor, nn

AT_ONCE = 2**16
"""Values that a cache holds beside what is made of them."""


def is_on_processor(tensor: Tensor) -> bool:
    """Whether the values lie in a processor's memory.

    Tensors of other classes may have no memory at all, such as those that a plan is made with.
    """
    return tensor.device.type == "cpu" and type(tensor) in (Tensor, nn.Parameter)


def outgrows_cache(tensor: Tensor) -> bool:
    """Whether blocks of ``AT_ONCE`` values are faster: fresh memory is most of the time else."""
    return is_on_processor(tensor) and tensor.numel() > AT_ONCE
