"""The processes that make one run together, each on a device of its own: who they are, and what they exchange.

Each rank takes an equal part of every batch, in the order of the batch. Every rank computes the loss of the whole
batch from the gathered embeddings, so all have the same loss; its gradient flows into a rank's own part, and the mean
of the ranks' gradients is the gradient that one device would have. There is no DistributedDataParallel: its hooks
belong to one forward of one module, while here encoder and heads run by themselves, several times in an update, and
attacks go backward in between. One all-reduce after the backward does the same, at the cost of not overlapping it.

Numbers and objects travel between CPUs by gloo, tensors between their devices.
"""

import contextlib
import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bench.device import device as devices

PATIENCE = datetime.timedelta(days=365)  # for one another: rank 0 may evaluate for hours. Who starts them sees a death


@dataclass(frozen=True)
class Ranks:
    """This process among ``size`` of them. Alone, every method gives back what it is given, and nothing is sent.

    But for ``part``, all ranks have to call the same methods in the same order.
    """

    rank: int = 0
    size: int = 1

    def part(self, whole: Tensor, dim: int = 0) -> Tensor:
        """This rank's part of a batch, which has to be divisible by the number of ranks."""
        return whole if self.size == 1 else whole.chunk(self.size, dim)[self.rank]

    def gather(self, part: Tensor, dim: int = 1) -> Tensor:
        """The whole batch of parts, (V, B / size, ...) -> (V, B, ...); gradients flow to the own part."""
        if self.size == 1:
            return part
        gathered: Tensor = Gather.apply(part, dim, self)
        return gathered

    def average(self, tensors: list[Tensor]) -> None:
        """The mean over the ranks in place of each tensor: one message for all of them."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view(tensor.shape))

    def stack(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, (...) -> (size, ...), without gradients."""
        if self.size == 1:
            return tensor.detach()[None]
        tensors = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(tensors, tensor.detach().contiguous())
        return torch.stack(tensors)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def most(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        return number if self.size == 1 else int(self.stack(torch.tensor(number)).max())

    def any(self, flag: bool) -> bool:
        """Whether it is so on some rank."""
        return bool(self.most(int(flag)))

    def every(self, flag: bool) -> bool:
        """Whether it is so on all ranks."""
        return not self.any(not flag)

    def tell(self, message: Any = None) -> Any:
        """What rank 0 says; the others' messages are not heard."""
        if self.size == 1:
            return message
        box = [message]
        dist.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    def collect(self, answer: Any) -> list[Any]:
        """On rank 0 the answers of all ranks in their order, elsewhere nothing."""
        if self.size == 1:
            return [answer]
        answers = [None] * self.size if self.rank == 0 else None
        dist.gather_object(answer, answers)
        return answers or []

    def latest(self, now: Callable[[], int]) -> Callable[[], int]:
        """A clock in nanoseconds that all ranks share: that of the rank which is furthest, counted from this call."""
        if self.size == 1:
            return now
        self.any(False)  # nobody starts to count before all are here
        start = now()
        return lambda: self.most(now() - start)


ALONE = Ranks()


class Gather(torch.autograd.Function):
    """The parts of all ranks, put together.

    Every rank's loss is the same function of them, so the gradient of the sum of all ranks' losses with respect to a
    part is ``size`` times what the own loss says; the mean over ranks takes the factor away again. So weights may be
    used before the gathering and after it.
    """

    @staticmethod
    def forward(ctx: Any, part: Tensor, dim: int, ranks: Ranks) -> Tensor:
        ctx.dim, ctx.ranks = dim, ranks
        return torch.cat(ranks.stack(part).unbind(), dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.ranks.part(gradient, ctx.dim) * ctx.ranks.size, None, None


@contextlib.contextmanager
def joined(rank: int, size: int, device: torch.device, meeting: str) -> Iterator[Ranks]:
    """The ranks of a run, met at an address of torch.distributed: ``file:///...`` or ``env://`` (torchrun)."""
    if size == 1:
        yield ALONE
        return
    dist.init_process_group(
        devices.collectives(device), init_method=meeting, rank=rank, world_size=size, timeout=PATIENCE
    )
    yield Ranks(rank, size)
    dist.destroy_process_group()  # not after an error: a rank that has lost the others would wait for them
