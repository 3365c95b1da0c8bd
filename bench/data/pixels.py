"""Images that stay in a file: a memory-mapped array of which only the rows that are asked for are read.

Pages that were read are given back at once, so the memory of the process grows with what it asks for at a time, not
with the file; what the operating system keeps of the file is free for others to take.
"""

import math
import mmap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Index = Tensor | slice


@dataclass(frozen=True, eq=False, repr=False)
class Pixels:
    """Images uint8 (N, C, H, W) of an .npy file, to be indexed by rows like a tensor: ``pixels[ids]`` reads them.

    ``rows`` are the places in the file, in the order of the images; ``checksums`` those of the whole file; ``centre``
    the side of the central square that is shown of each image, None for all of it.
    """

    file: mmap.mmap
    array: Tensor  # all images of the file, in its memory
    checksums: np.ndarray  # CRC-32 of each of them, uint32
    rows: Tensor
    centre: int | None = None
    dtype: torch.dtype = field(default=torch.uint8, init=False)
    ndim: int = field(default=4, init=False)

    @property
    def shape(self) -> torch.Size:
        channels, height, width = self.array.shape[1:]
        side = self.centre
        return torch.Size([len(self.rows), channels, side or height, side or width])

    def __len__(self) -> int:
        return len(self.rows)

    def numel(self) -> int:
        return self.shape.numel()

    def __getitem__(self, ids: Index) -> Tensor:
        """The images, copied into memory."""
        rows = self.rows[ids if isinstance(ids, slice) else ids.cpu()]
        size = self.array[0].numel()
        for row in rows.tolist():  # ask the disk for all of them before waiting for one
            start = (row * size + OFFSET) // mmap.PAGESIZE * mmap.PAGESIZE
            self.file.madvise(mmap.MADV_WILLNEED, start, row * size + OFFSET + size - start)
        images = (self.array if self.centre is None else central(self.array, self.centre))[rows]
        self.file.madvise(mmap.MADV_DONTNEED)
        return images

    def take(self, ids: Index) -> "Pixels":
        """Some of the images, none of them read."""
        return replace(self, rows=self.rows[ids])

    def central(self, side: int) -> "Pixels":
        """The central square of each image, none of them read."""
        return replace(self, centre=side)

    def to(self, device: torch.device | str) -> Tensor:
        """All images in the memory of a device."""
        whole = torch.empty(self.shape, dtype=self.dtype, device=device)
        for into, part in zip(whole.split(PART), self.split(PART), strict=True):
            into.copy_(part)
        return whole

    def split(self, count: int) -> Iterator[Tensor]:
        """All images, so many at a time."""
        return (self[slice(start, start + count)] for start in range(0, len(self), count))

    @property
    def marks(self) -> np.ndarray:
        """Checksums of the images, in their order: different for most images that differ."""
        marks: np.ndarray = self.checksums[self.rows.numpy()]
        return marks


PART = 1024  # images that are copied at a time
OFFSET = 4096  # bytes before the first image: the header of the .npy file, as long as a page


def central(images: Tensor, side: int) -> Tensor:
    """The central square of images (N, C, H, W), a view."""
    top, left = (round((whole - side) / 2) for whole in images.shape[2:])
    return images[:, :, top : top + side, left : left + side]


def header(shape: tuple[int, ...]) -> bytes:
    """The first OFFSET bytes of an .npy file of uint8 images (N, C, H, W)."""
    start, text = np.lib.format.magic(1, 0), repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode()
    size = OFFSET - len(start) - 2
    return start + size.to_bytes(2, "little") + text.ljust(size - 1) + b"\n"


def open_pixels(path: Path, shape: tuple[int, ...], checksums: np.ndarray) -> Pixels:
    """All images of an .npy file with that header."""
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the array cannot be written: nobody does
        array = torch.frombuffer(memory, dtype=torch.uint8, count=math.prod(shape), offset=OFFSET)
    return Pixels(memory, array.view(shape), checksums, torch.arange(shape[0]))
