"""Images in other company: is the answer to an image its own, whatever else lies in its batch (S7, M1)?

How many images there are, and how many the device takes at once, decide nothing: where there are few, noise is added,
and what is scored in the batches of the evaluation is asked again in small ones.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.audit.checks.subject import Subject
from bench.random import stream

SIZES = (1, 2, 3, 5, 8, 13, 32)  # of the batches, in turns
LEAST = 32  # images


def company(subject: Subject, check: str, most: int) -> Tensor:
    """The first ``most`` images, (N, C, H, W); where there are fewer than LEAST, noise in [0, 1] up to so many."""
    images = subject.images[:most]
    missing = LEAST - len(images)
    if missing <= 0:
        return images
    noise = torch.rand(missing, *images.shape[1:], generator=stream(subject.seed, "audit", check))
    return torch.cat([images, noise.to(images)])


def small_batches(count: int) -> Iterator[Tensor]:
    """The places of so many images from the last to the first, in batches of SIZES."""
    left, number = torch.arange(count - 1, -1, -1), 0
    while len(left):
        size = SIZES[number % len(SIZES)]
        yield left[:size]
        left, number = left[size:], number + 1


def difference(logits: Tensor, expected: Tensor, largest: float | None = None) -> float:
    """Largest difference of two (B, K) as a share of the ``largest`` logit, or else of the largest ``expected``.

    1 where it is larger or not finite.
    """
    scale = float(expected.abs().max()) if largest is None else largest
    value = float((logits - expected).abs().max()) / max(scale, 1e-12)
    return value if value < 1 else 1.0
