"""What a search over settings has tried, method by method, and what follows from it: `bench tune` (bench.tuning).

Every method gets the same number of trials, the same budget in each, and the same seed of the sampler; trial 0 is as
published. What a trial is worth was measured on held-out training images.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from bench.ranges import Range
from bench.spec import Budget, Data, Name, UsageError, unknown

Objective = Literal["robust", "clean", "pareto"]
FILE = "tuning.json"
ENDING = "-tuned"  # of the name of a row with the best settings of a search
SEED = 1000  # of the training of every trial; those of real runs are others


class Trial(Data):
    """One training with settings of its own: what it is worth, in correct images of those held out.

    A training that diverged, or ran out of memory, has none of them right.
    """

    settings: dict[str, Any]  # those that are searched
    clean: int = Field(ge=0)
    robust: int = Field(ge=0)  # under PGD at the main eps
    total: int = Field(gt=0)
    status: str
    train_seconds: float
    updates: int

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if max(self.clean, self.robust) > self.total:
            raise ValueError(f"expected at most {self.total} correct images, got {max(self.clean, self.robust)}")
        return self

    def value(self, objective: Objective) -> float:
        """What is maximized, in [0, 1]: robust accuracy, clean accuracy, or for pareto the mean of both."""
        correct = {"robust": self.robust, "clean": self.clean, "pareto": (self.robust + self.clean) / 2}[objective]
        return correct / self.total


class Search(Data):
    """The trials of one method, in order, and where their settings were looked for."""

    method: str  # a name, or the path of a file
    fixed: dict[str, Any]  # of a suite or --set: the same in every trial
    space: dict[str, Range]
    trials: list[Trial]
    importance: dict[str, float] = {}  # share of the differences that each setting explains; none for few trials

    @model_validator(mode="after")
    def _inside(self) -> Self:
        for number, trial in enumerate(self.trials):
            if trial.settings.keys() != self.space.keys():
                raise ValueError(f"expected settings {', '.join(self.space)} of trial {number}")
            outside = [name for name, value in trial.settings.items() if value not in self.space[name]]
            if outside:
                raise ValueError(f"expected {outside[0]} of trial {number} in its range, {self.space[outside[0]]}")
        return self

    def and_trial(self, trial: Trial) -> Self:
        """The same with one more trial."""
        return self.model_copy(update={"trials": [*self.trials, trial]})


class Tuning(Data):
    """A whole search, as ``tuning.json`` keeps it."""

    objective: Objective
    trials: int = Field(gt=0)  # of every method
    budget: Budget  # of every trial
    sampler_seed: int
    dataset: str  # the label of its images
    data: str  # as --data names it
    path: str | None = None  # of a folder of images
    encoder: str
    eps: float
    searches: dict[Name, Search] = Field(min_length=1)  # row -> what was tried

    @property
    def images(self) -> str:
        """Its data as --data takes it."""
        return f"{self.data}:{self.path}" if self.path else self.data

    @property
    def done(self) -> bool:
        """Whether every method has all its trials."""
        return all(len(search.trials) >= self.trials for search in self.searches.values())

    def with_trials(self, trials: Mapping[str, Trial]) -> Self:
        """One more trial for each of these rows."""
        new = {row: self.searches[row].and_trial(trial) for row, trial in trials.items()}
        return self.model_copy(update={"searches": self.searches | new})

    def with_importance(self, shares: Mapping[str, dict[str, float]]) -> Self:
        """How much each setting of these rows explains."""
        new = {row: self.searches[row].model_copy(update={"importance": share}) for row, share in shares.items()}
        return self.model_copy(update={"searches": self.searches | new})

    def renamed(self, names: Mapping[str, str]) -> Self:
        """The same with other names of its rows, where there are any."""
        return self.model_copy(update={"searches": {names.get(row, row): s for row, s in self.searches.items()}})

    def best(self, row: str) -> int:
        """The number of the best trial of a row; of equal ones the first. Raises UsageError for an unknown row."""
        if row not in self.searches:
            raise UsageError(unknown("tuned row", row, self.searches))
        values = self.values(row)
        return values.index(max(values))

    def values(self, row: str) -> list[float]:
        """What each trial of a row is worth."""
        return [trial.value(self.objective) for trial in self.searches[row].trials]

    def tuned_settings(self, row: str) -> dict[str, Any]:
        """The settings of the best trial of a row; none where that is the published one."""
        number = self.best(row)
        return dict(self.searches[row].trials[number].settings) if number else {}

    def on_border(self, row: str) -> list[str]:
        """The settings whose best value lies at an end of their range: a better one may lie beyond."""
        space = self.searches[row].space
        return [name for name, value in self.tuned_settings(row).items() if space[name].on_border(value)]

    def __str__(self) -> str:
        return f"{self.trials} trials of {self.budget} each, for {self.objective} accuracy on held-out training images"


def best_so_far(values: Sequence[float]) -> list[float]:
    """The greatest value of the first 1, 2, ... trials.

    >>> best_so_far([0.2, 0.5, 0.4])
    [0.2, 0.5, 0.5]
    """
    return [max(values[: count + 1]) for count in range(len(values))]


def expected_best(values: Sequence[float]) -> list[float]:
    """The mean over all choices of 1, 2, ... of these trials of the greatest value among them.

    So much k trials in any order would have brought (Dodge et al., 2019, arXiv:1909.03004, without replacement).

    >>> expected_best([0.0, 1.0])
    [0.5, 1.0]
    """
    ordered, n = sorted(values), len(values)
    return [
        sum(value * math.comb(place, k - 1) for place, value in enumerate(ordered)) / math.comb(n, k)
        for k in range(1, n + 1)
    ]
