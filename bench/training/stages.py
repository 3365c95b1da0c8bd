"""The stages of a training: where in the budget each begins and ends, and what each has cost."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.spec import Budget, UsageError
from bench.training.clock import updates_at
from bench.training.course import Course
from methods.common.base import BaseMethod, Stage


@dataclass
class Cost:
    """What a stage has cost so far: numbers that are saved with the state of a training."""

    name: str
    first_update: int  # updates before it
    first_seconds: float
    updates_per_epoch: int
    updates: int = 0
    seconds: float = 0.0
    images: float = 0.0  # that one update shows, a replay counted as its part of the batch
    passes: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of one update: forward, backward to input, to weights
    flops: float = 0.0  # of one update


def laid_out(method: BaseMethod, images: int, budget: Budget, ranks: int = 1) -> tuple[list[float], int | None]:
    """The ``boundaries`` of a method's stages on so many images. Raises UsageError for a batch that cannot be."""
    configs = [replace(method.config, **stage.settings) for stage in method.stages()]
    courses = [Course(images, config.batch, config.updates_per_batch, ranks) for config in configs]
    return boundaries(method.stages(), courses, budget)


def check_stages(method: BaseMethod, images: int, budget: Budget, ranks: int = 1) -> None:
    """Raises UsageError as ``laid_out``, and for a budget in updates or epochs of which a stage would have none."""
    ends, total = laid_out(method, images, budget, ranks)
    if total is None:
        return
    if (place := empty(ends, total)) is not None:
        stage = method.stages()[place]
        least = next(n for n in itertools.count(total) if empty(ends, n) is None)
        raise UsageError(
            f"{budget} leaves no update for stage {stage.name}, whose share is {stage.share:.2g}; "
            f"give at least {least} updates"
        )


def empty(ends: Sequence[float], total: int) -> int | None:
    """The first stage without an update in so many of them, if there is one."""
    last = [0, *(updates_at(end, total) for end in ends)]
    return next((place for place, (begin, end) in enumerate(itertools.pairwise(last)) if begin == end), None)


def boundaries(stages: Sequence[Stage], courses: Sequence[Course], budget: Budget) -> tuple[list[float], int | None]:
    """(the share of the budget at the end of each stage, the updates of all; None for a budget in time).

    Of a budget in epochs a stage has its share of them in its own batches. Raises UsageError where the shares do not
    sum to 1.
    """
    shares = [stage.share for stage in stages]
    if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
        raise UsageError(f"expected stages whose shares of the budget are above 0 and sum to 1, got {shares}")
    ends = [*itertools.accumulate(shares[:-1]), 1.0]
    if budget.unit == "seconds":
        return ends, None
    if budget.unit == "updates" or len(stages) == 1:
        return ends, courses[0].total_updates(budget)
    counts = [
        course.total_updates(budget.model_copy(update={"amount": budget.amount * share})) or 0
        for share, course in zip(shares, courses, strict=True)
    ]
    return [*(updates / sum(counts) for updates in itertools.accumulate(counts[:-1])), 1.0], sum(counts)


def per_image(costs: Sequence[Cost], place: int) -> float:
    """Passes of one kind (see Cost) for each image that was shown, over all stages."""
    return _mean(costs, [cost.passes[place] for cost in costs])


def flops_per_image(costs: Sequence[Cost]) -> float:
    """The same of FLOPs."""
    return _mean(costs, [cost.flops for cost in costs])


def _mean(costs: Sequence[Cost], values: Sequence[float]) -> float:
    """What an update costs over the images that it shows; before the first update, as if each stage had made one."""
    updates = [max(cost.updates, 1) for cost in costs]
    shown = sum(cost.images * count for cost, count in zip(costs, updates, strict=True))
    return sum(value * count for value, count in zip(values, updates, strict=True)) / shown
