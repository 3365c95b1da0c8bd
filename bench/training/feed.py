"""The batches of a training, one after the other: taken from the device, or read ahead by threads while it computes.

Which images a batch has is known beforehand (seed, epoch, place), so both ways give the same batches.
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import torch
from torch import Tensor

from bench.data.images import ImageSet, permutation
from bench.training.course import Course

AHEAD = 3  # batches that are read before they are asked for
THREADS = 2

Place = tuple[int, int]  # epoch, batch within the epoch


class Feed:
    """``feed(epoch, batch)`` is (ids (B,), pixels uint8 (B, C, H, W)), both on the device; ``waited`` for them so far.

    ``own`` picks those of the ids whose pixels are wanted, all unless the batch is shared (bench.distributed.ranks).
    Images that ``ImageSet.to`` has brought to the device are taken there. Of others the next batches are on their way,
    in page-locked memory where the device is a GPU. To be closed: its threads end with it.
    """

    def __init__(
        self,
        images: ImageSet,
        course: Course,
        seed: int,
        device: torch.device,
        own: Callable[[Tensor], Tensor] = lambda ids: ids,
    ) -> None:
        self.waited = 0.0  # seconds
        self._images, self._course, self._seed, self._device, self._own = images, course, seed, device, own
        self._resident = isinstance(images.images, Tensor) and images.images.device == device
        self._orders: dict[int, Tensor] = {}  # of the newest epochs, on the CPU
        self._order, self._epoch = torch.empty(0), -1  # of the epoch that is trained, on the device
        self._coming: deque[tuple[Place, Future[Tensor]]] = deque()
        self._threads = None if self._resident else ThreadPoolExecutor(THREADS, "feed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def __call__(self, epoch: int, batch: int) -> tuple[Tensor, Tensor]:
        if epoch != self._epoch:
            self._order, self._epoch = self._ids(epoch).to(self._device), epoch  # waits, once per epoch
        ids = self._order[self._part(batch)]
        if self._threads is None:
            return ids, self._images.batch(self._own(ids), self._device)
        began = time.perf_counter()
        pixels = self._next((epoch, batch)).result()
        self.waited += time.perf_counter() - began
        return ids, pixels.to(self._device, non_blocking=True)

    def _next(self, place: Place) -> Future[Tensor]:
        """The batch at the place, which is the one that comes first but for a start; more are sent for behind it."""
        assert self._threads is not None
        while self._coming and self._coming[0][0] != place:
            self._coming.popleft()
        last = self._coming[-1][0] if self._coming else None
        while len(self._coming) <= AHEAD:
            last = place if last is None else self._after(last)
            self._coming.append((last, self._threads.submit(self._read, self._ids(last[0])[self._part(last[1])])))
        return self._coming.popleft()[1]

    def _read(self, ids: Tensor) -> Tensor:
        pixels = self._images.batch(self._own(ids), "cpu")
        return pixels.pin_memory() if self._device.type == "cuda" else pixels

    def _after(self, place: Place) -> Place:
        epoch, batch = place
        return (epoch, batch + 1) if batch + 1 < self._course.batches_per_epoch else (epoch + 1, 0)

    def _part(self, batch: int) -> slice:
        return slice(batch * self._course.batch, (batch + 1) * self._course.batch)

    def _ids(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders = {other: order for other, order in self._orders.items() if other == epoch - 1}
            self._orders[epoch] = permutation(len(self._images), self._seed, epoch)
        return self._orders[epoch]
