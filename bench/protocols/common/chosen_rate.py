"""One rule for every head that is trained on attacked images: its learning rate is the one of most robust accuracy.

Each rate is tried on four fifths of the training images and judged on the last fifth, under the PGD that the head is
trained with. Test images take no part. The head that counts is then trained on all images at the chosen rate.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from bench.protocols.common.base import Material
from bench.protocols.common.features import finite
from bench.protocols.common.probe import held_out
from bench.protocols.common.trained_head import JUDGED

Head = TypeVar("Head", bound=nn.Module)
Counts = list[tuple[float, int, int]]


def most_robust(held_out: Counts) -> float:
    """The rate with most correct answers, the smaller of two that are alike; (rate, correct, total) of each."""
    return max(held_out, key=lambda counted: (counted[1], -counted[0]))[0]


@dataclass(frozen=True)
class Tuned(Generic[Head]):
    """The head that counts, trained on all images; how its rate was chosen; the heads of all rates, on four fifths."""

    head: Head
    rate: float
    held_out: Counts
    tried: dict[float, Head]

    @property
    def facts(self) -> dict[str, Any]:
        """Of a ProbeResult."""
        return {"learning_rate": self.rate, "held_out": self.held_out}

    @property
    def others(self) -> dict[float, nn.Module]:
        """The heads of the other rates, for the band."""
        return {rate: head for rate, head in self.tried.items() if rate != self.rate}


def tuned(
    rates: tuple[float, ...],
    ids: Tensor,
    material: Material,
    trained: Callable[[str, float, Tensor], Head],
    judged: Callable[[Head, Tensor], tuple[int, int]],
) -> Tuned[Head]:
    """The head at the rate that the rule takes of ``rates``; with one rate there is nothing to choose.

    ids: (M,) training images. ``trained`` (name, rate, images) -> a head. ``judged`` (head, images) -> correct, total.
    """
    held = held_out(len(material.train))
    judges = torch.arange(len(held))[held][:JUDGED]
    tried: dict[float, Head] = {}
    counts: Counts = []
    for rate in rates if len(rates) > 1 else ():
        name = f"rate {rate:g}"
        tried[rate] = trained(name, rate, ids[~held[ids]])
        judgement = material.draft.states[name].get("judged")
        if judgement is None:
            judgement = list(judged(tried[rate], judges))
            material.draft.put(name, material.draft.states[name] | {"judged": judgement})
        counts.append((rate, *judgement))
    rate = most_robust(counts) if counts else rates[0]
    return Tuned(trained("final", rate, ids), rate, counts, tried)


def images_seen(images: int, rates: int) -> tuple[list[int], int]:
    """(of each training how many images it may draw from, how many are judged in all) of ``tuned``."""
    if rates < 2:
        return [images], 0
    held = int(held_out(images).sum())
    return [images - held] * rates + [images], rates * min(held, JUDGED)


def sound_images(features: Tensor) -> Tensor:
    """Places (M,) of the images whose features are finite, on the CPU. Raises ValueError where there are none."""
    ids: Tensor = finite(features).nonzero().flatten()
    if not len(ids):
        raise ValueError("expected finite features to train a head on, got NaN or infinity for every image")
    return ids
