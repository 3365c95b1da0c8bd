"""The features of all training images: on the device where they are few, else in a file; read in pieces."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bench.spec import UsageError

ON_DEVICE = 2**32  # bytes; more are kept in a file, and only pieces of them in memory
PIECE = 2**20  # numbers of one piece, its features or its logits: 8 MiB in float64


def room(count: int, width: int, device: torch.device) -> Tensor:
    """Room for features (count, width) in float32: on the device, or mapped from a file, and then on the CPU.

    The file has no name, so nothing is left of it, however the process ends. It lies where temporary files do (TMPDIR),
    and the disk keeps its room from the start: a page that could not be written later would end the process. Raises
    UsageError where there is no room.
    """
    needed = 4 * count * width
    if needed <= ON_DEVICE:
        return torch.empty(count, width, device=device)
    with tempfile.TemporaryFile() as file:
        try:
            os.posix_fallocate(file.fileno(), 0, needed)
        except OSError as error:
            raise UsageError(
                f"expected {needed / 2**30:.1f} GiB in {tempfile.gettempdir()} for the features of {count} training "
                f"images, got: {error.strerror}; TMPDIR names another folder, --train-images takes fewer"
            ) from error
        return torch.from_numpy(np.memmap(file, dtype=np.float32, mode="r+", shape=(count, width)))


def pieces(features: Tensor, classes: int = 1) -> Iterator[slice]:
    """Which rows of features (N, F) are read at once, one after the other, where ``classes`` logits come of each."""
    rows = max(1, PIECE // max(1, features.shape[1], classes))
    return (slice(start, start + rows) for start in range(0, len(features), rows))


def finite(features: Tensor) -> Tensor:
    """Which images (N,) have features without NaN and infinity, on the CPU."""
    return torch.cat([features[part].isfinite().all(dim=1).cpu() for part in pieces(features)])


@dataclass(frozen=True)
class Rows:
    """Features (N, F) of some images, moved by ``mean`` (F,) and divided by ``scale``, in float64, piece by piece.

    ``chosen`` (N,) says which images, on the CPU. ``labels`` (N,), of so many ``classes``, are on the device to which
    the pieces go.
    """

    features: Tensor
    labels: Tensor
    chosen: Tensor
    classes: int
    mean: Tensor
    scale: float = 1.0

    @classmethod
    def standardized(cls, features: Tensor, labels: Tensor, chosen: Tensor, classes: int) -> "Rows":
        """The chosen images with features whose mean is 0 and whose mean square is 1, where they differ at all."""
        zeros = torch.zeros(features.shape[1], dtype=torch.float64, device=labels.device)
        rows = cls(features, labels, chosen, classes, zeros)
        count = max(1, len(rows))  # where none is chosen, a head that learns nothing is told by its accuracy
        rows = replace(rows, mean=sum((x.sum(dim=0) for x, _ in rows), start=zeros) / count)
        square = sum(float(x.square().sum()) for x, _ in rows) / count / features.shape[1]
        return replace(rows, scale=max(square**0.5, 1e-12))

    def __len__(self) -> int:
        return int(self.chosen.sum())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(features (n, F), labels (n,)) of one piece after the other."""
        for part in pieces(self.features, self.classes):
            chosen = self.chosen[part]
            if not bool(chosen.any()):
                continue
            x, labels = self.features[part], self.labels[part]
            if not bool(chosen.all()):
                x, labels = x[chosen.to(x.device)], labels[chosen.to(labels.device)]
            yield (x.to(labels.device).double() - self.mean) / self.scale, labels

    def of(self, chosen: Tensor) -> "Rows":
        """Those of the images that are among ``chosen`` (N,) too."""
        return replace(self, chosen=self.chosen & chosen)

    def sample(self, most: int) -> Tensor:
        """At most so many of the images, evenly spread over all of them: (M, F) in float32."""
        places = self.chosen.nonzero().flatten()
        spread = torch.zeros_like(self.chosen)
        spread[places[:: -(-len(places) // most)]] = True
        return torch.cat([x.float() for x, _ in replace(self, chosen=spread)])
