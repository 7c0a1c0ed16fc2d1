"""What a training runs on: one process, or several that train one model together.

Each of several has the whole model, and its share of the rows of every micro-batch. Losses are
divided by what the whole step asks for, so gradients are added up, and then every process takes the
same step. A process on its own exchanges nothing: all of it is the identity then.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn

from wrinklefree.errors import UserError
from wrinklefree.kernels.capabilities import Precision, chosen_precision, gains
from wrinklefree.kernels.ternary_linear.products import chosen_back_end
from wrinklefree.quant.bitlinear import forget_codes
from wrinklefree.train.allocator import keep_freed_memory


@dataclass(frozen=True)
class Runtime:
    """A process and its device. Parameters are float32; products run in ``precision``.

    What exchanges something with the others has to be called by all of them.
    """

    device: torch.device
    precision: Precision
    rank: int = 0
    """Number of this process, from 0."""
    ranks: int = 1
    """How many processes there are."""

    @classmethod
    def here(
        cls, precision: Literal["auto"] | Precision, device: torch.device | None = None
    ) -> Runtime:
        """A GPU where there is one, and all processes that torchrun has started.

        ``auto`` is bfloat16 where every machine multiplies it faster. A ``device`` that is given
        is that of one process.
        """
        several = distributed.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) > 1
        several &= device is None
        device = device or (_own_device() if several else _device())
        if device.type == "cpu":
            keep_freed_memory()
        runtime = cls(device, "fp32", *(_join(device) if several else (0, 1)))
        if runtime.ranks > 1:  # which must not differ in what an update is computed in
            measured = gains(device.type)
            rates = runtime.gather(torch.tensor(list(measured.values()), dtype=torch.float64))
            measured.update(zip(measured, rates.amin(0).tolist(), strict=True))
        return replace(runtime, precision=chosen_precision(precision, device.type))

    @property
    def leads(self) -> bool:
        """Whether this is the one process that writes files and says something."""
        return self.rank == 0

    def describe(self) -> str:
        """What products are computed in, for people."""
        ternary = chosen_back_end(self.device)
        several = f" in each of {self.ranks} processes" if self.ranks > 1 else ""
        on = f"computes in {self.precision} on {self.device.type if several else self.device}"
        return f"{on}{several}, ternary products in {ternary}"

    def place(self, module: nn.Module) -> None:
        """Move a model to the device, in place; all get the one of the first process."""
        nn.Module.to(module, self.device)  # transformers' own method hides its type
        if self.ranks > 1:
            for tensor in itertools.chain(module.parameters(), module.buffers()):
                distributed.broadcast(tensor.detach(), 0)
            forget_codes(module)  # of what was there before, since no change is counted

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """What forward passes run inside."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def rows_of(self, batch_size: int) -> int:
        """How many rows of a micro-batch are read by each process."""
        if batch_size % self.ranks:
            raise UserError(
                f"batch_size is {batch_size}, and {self.ranks} processes share the rows of a"
                f" micro-batch evenly: make it a multiple of {self.ranks}, or start another number"
                " of processes"
            )
        return batch_size // self.ranks

    def gather(self, tensor: Tensor) -> Tensor:
        """What each process gives, [ranks, *shape], the same to the bit for all."""
        if self.ranks == 1:
            return tensor[None]
        table = torch.zeros(self.ranks, *tensor.shape, dtype=tensor.dtype, device=self.device)
        table[self.rank] = tensor
        distributed.all_reduce(table)
        return table.to(tensor.device)

    def maximum(self, tensor: Tensor) -> Tensor:
        """The largest that any process gives, entry by entry."""
        return self.gather(tensor).amax(0)

    def sum(self, *numbers: float) -> list[float]:
        """The sum over processes of each number."""
        return self.gather(torch.tensor(numbers, dtype=torch.float64)).sum(0).tolist()

    def wait(self) -> None:
        """Until every process has come here."""
        self.sum(0.0)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Let every gradient be the sum over processes, in place.

        A parameter that has none in any process stays without.
        """
        if self.ranks == 1:
            return
        parameters = list(parameters)
        has = self.maximum(torch.tensor([p.grad is not None for p in parameters]).byte())
        gradients = []
        for parameter in itertools.compress(parameters, has.tolist()):
            if parameter.grad is None:  # its part of the model saw none of this process's rows
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        # All are under way at once. To copy them into one tensor and back took twice as long for 50
        # million entries, two thirds of the time for 4, and a second set of gradients in memory.
        for sum_ in [distributed.all_reduce(gradient, async_op=True) for gradient in gradients]:
            assert sum_ is not None, "this process is one of the group"
            sum_.wait()


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _own_device() -> torch.device:
    """The one of this process among those of its machine."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", torch.cuda.current_device()))
    if number >= (count := torch.cuda.device_count()):
        raise UserError(
            f"this is process {number} of this machine, counted from 0, and it has {count} GPUs:"
            " start one process for each"
        )
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def _join(device: torch.device) -> tuple[int, int]:
    """Meet the other processes, if that is not done yet; the number of this one, of how many."""
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    return distributed.get_rank(), distributed.get_world_size()


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
