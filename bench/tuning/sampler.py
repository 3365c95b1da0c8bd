"""The next settings to try: Optuna's TPE sampler over what has been tried. Needs the extra ``tune``.

The sampler is made anew for every trial, from its seed, the trial's number and the trials before it: a search that was
killed goes on as if nothing had happened, and one of 32 trials begins as one of 16.
"""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.ranges import Range, rounded
from bench.spec import UsageError
from bench.tuned import Objective, Trial
from bench.tuning.space import Ground

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

AT_RANDOM = 5  # trials before the sampler learns from those before; the published one is among them
LEAST_TRIALS = 12  # from which the importance of a setting is said


def check_package() -> None:
    """Raises UsageError where Optuna is missing."""
    import importlib.util

    if importlib.util.find_spec("optuna") is None:
        raise UsageError("bench tune needs Optuna: pip install 'robust-ssl-bench[tune]'")


def next_settings(ground: Ground, trials: list[Trial], objective: Objective, seed: int) -> dict[str, Any]:
    """The settings of the next trial; the first is as published. The same for the same arguments."""
    if not trials:
        return ground.published
    kinds: tuple[Objective, ...] = ("clean", "robust") if objective == "pareto" else (objective,)
    asked = study_of(ground, trials, kinds, seed).ask(distributions(ground)).params
    return {name: limited(value, ground.space[name]) for name, value in asked.items()}


def study_of(ground: Ground, trials: list[Trial], kinds: Sequence[Objective], seed: int) -> "optuna.Study":
    """The trials as Optuna sees them, with a value to maximize for each of ``kinds``."""
    import optuna
    from optuna.trial import create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=1000 * seed + len(trials), n_startup_trials=AT_RANDOM)
    study = optuna.create_study(directions=["maximize"] * len(kinds), sampler=sampler)
    within = distributions(ground)
    for trial in trials:
        values = [trial.value(kind) for kind in kinds]
        study.add_trial(create_trial(params=trial.settings, distributions=within, values=values))
    return study


def distributions(ground: Ground) -> "dict[str, BaseDistribution]":
    """Ranges in Optuna's words; a setting whose published value is a whole number takes no other."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    made: dict[str, BaseDistribution] = {}
    for name, bounds in ground.space.items():
        if bounds.choices:
            made[name] = CategoricalDistribution(bounds.choices)
        elif bounds.low is not None and bounds.high is not None:
            low, high = bounds.low, bounds.high
            made[name] = (
                IntDistribution(round(low), round(high), log=bounds.log)
                if name in ground.whole
                else FloatDistribution(low, high, log=bounds.log)
            )
    return made


def limited(value: Any, bounds: Range) -> Any:
    """A float to four digits, within its bounds; anything else as it is."""
    if not isinstance(value, float) or bounds.low is None or bounds.high is None:
        return value
    return min(max(rounded(value), bounds.low), bounds.high)


def importance(ground: Ground, trials: list[Trial], objective: Objective) -> dict[str, float]:
    """How much of what tells good trials from others each setting explains (PED-ANOVA), summing to 1.

    None for fewer trials than LEAST_TRIALS, or where too many of them are worth the same for it to tell.
    """
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator

    if len(trials) < LEAST_TRIALS or len({trial.value(objective) for trial in trials}) < 2:
        return {}
    study = study_of(ground, trials, [objective], seed=0)
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always")
        shares = optuna.importance.get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return {} if doubts else {name: round(float(share), 4) for name, share in shares.items()}
