"""A search over settings as it would be stored, made of plain numbers."""

from bench.ranges import between, log_range
from bench.spec import Budget
from bench.tuned import Search, Trial, Tuning

SPACE = {"lr": log_range(0.03, 3.0), "temperature": between(0.01, 0.5)}


def trial(robust, lr=0.3, temperature=0.07, clean=90, status="finished"):
    """What a training with these settings was worth, of 100 images."""
    settings = {"lr": lr, "temperature": temperature}
    return Trial(
        settings=settings, clean=clean, robust=robust, total=100, status=status, train_seconds=12.0, updates=150
    )


def search(*trials, fixed=None, method="simclr"):
    """The search of one method."""
    return Search(method=method, fixed=fixed or {}, space=SPACE, trials=list(trials))


def tuning(searches, *, trials=None, objective="robust"):
    """The search of several methods; done, unless more trials were asked for."""
    asked = trials or max(len(found.trials) for found in searches.values())
    return Tuning(
        objective=objective,
        trials=asked,
        budget=Budget.parse("150up"),
        sampler_seed=0,
        dataset="digits, held-out training images",
        data="digits",
        encoder="resnet8",
        eps=0.1,
        searches=searches,
    )
