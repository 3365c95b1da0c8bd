"""The search: round after round one training of every method, each round a run folder of its own (trials/03).

Nothing is kept twice. What was tried is read from the rounds' records, and the next settings follow from that, so a
search that was killed goes on with the same command.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.options.changes import MOST, between
from bench.record import Record
from bench.spec import RunSpec, UsageError
from bench.storage.disk import is_there
from bench.storage.files import Damaged, read, save
from bench.tuned import FILE, SEED, Objective, Search, Trial, Tuning
from bench.tuning.sampler import importance, next_settings
from bench.tuning.space import Ground

ENDED = ("finished", "diverged", "oom")  # how a trial ends that is worth something, if only 0


def round_folder(out: Path, number: int) -> Path:
    """The run folder of a round."""
    return out / "trials" / f"{number:02d}"


def as_trial(spec: RunSpec) -> RunSpec:
    """A run as a trial makes it: its evaluation is clean accuracy, and PGD at the main eps, and nothing else."""
    judged = spec.eval.model_copy(update={"curve": (), "eps": (spec.eval.main_eps,), "eps_l2": ()})
    return spec.model_copy(update={"seed": SEED, "eval": judged})


def trial_of(record: Record, settings: dict[str, Any]) -> Trial:
    """What a training that has ended is worth with these settings; nothing where it diverged or ran out of memory."""
    clean, robust, total = counts(record) if record.status == "finished" else (0, 0, 1)
    return Trial(
        settings=settings,
        clean=clean,
        robust=robust,
        total=total,
        status=record.status,
        train_seconds=record.train.train_seconds if record.train else 0.0,
        updates=record.train.updates if record.train else 0,
    )


def counts(record: Record) -> tuple[int, int, int]:
    """(correct when clean, correct under PGD, all) of the images that PGD attacked. Raises UsageError without them."""
    by_attack = {result.attack: result for result in record.results}
    if not {"none", "pgd"} <= by_attack.keys():
        known = ", ".join(by_attack) or "nothing"
        raise UsageError(f"expected clean images and PGD of {record.spec.name}, got {known}")
    clean, pgd = by_attack["none"], by_attack["pgd"]
    return clean.outcomes[: pgd.total].count("1"), pgd.correct, pgd.total  # one fixed order of images


def stored_trials(out: Path, asked: Tuning) -> int:
    """How many trials of this search ``out`` has already; a damaged file is made again from the rounds.

    Raises UsageError where it holds another search, or a longer one.
    """
    try:
        stored = read(Tuning, out / FILE) if is_there(out / FILE) else None
    except Damaged:
        return 0
    if stored is None:
        return 0
    if other := between(question(stored), question(asked)):
        raise UsageError(f"{out} holds another search ({'; '.join(other[:MOST])}); choose another --out")
    if asked.trials < stored.trials:
        raise UsageError(f"expected --trials of at least {stored.trials}, as {out} has them, got {asked.trials}")
    return min(len(search.trials) for search in stored.searches.values())


def question(tuning: Tuning) -> dict[str, Any]:
    """What a search asks, in a flat dictionary: all but what it has found."""
    said: dict[str, Any] = tuning.model_dump(exclude={"trials", "searches"})
    for row, found in tuning.searches.items():
        space = {name: str(bounds) for name, bounds in found.space.items()}
        said |= {f"{row}.method": found.method, f"{row}.settings": str(found.fixed), f"{row}.space": str(space)}
    return said


def search(
    out: Path,
    specs: list[RunSpec],
    grounds: dict[str, Ground],
    asked: Tuning,
    make_round: Callable[[Path, list[RunSpec]], list[Record]],
) -> Tuning:
    """The trials of every row: ``asked`` with what was tried, as ``tuning.json`` in ``out`` has it after every round.

    ``make_round`` makes the runs of a round in its folder, or finds them made, and gives their records. A round in
    which a training did not end is the last one: the same command goes on with it. Raises UsageError where ``out``
    holds another search.
    """
    known = stored_trials(out, asked)
    tried = asked
    for number in range(asked.trials):
        settings = {
            row: next_settings(ground, tried.searches[row].trials, asked.objective, asked.sampler_seed)
            for row, ground in grounds.items()
        }
        changed = [spec.model_copy(update={"settings": spec.settings | settings[spec.row]}) for spec in specs]
        records = make_round(round_folder(out, number), changed if number else specs)  # trial 0: every method as it is
        if any(record.status not in ENDED or record.failed or record.missing for record in records):
            break
        new = {record.spec.row: trial_of(record, settings[record.spec.row]) for record in records}
        tried = tried.with_trials(new)
        if number >= known:
            save(out / FILE, tried)
    if min(len(found.trials) for found in tried.searches.values()) < known:
        return tried  # a round that the file knows has to be made again: until then it stays as it is
    shares = {row: importance(ground, tried.searches[row].trials, asked.objective) for row, ground in grounds.items()}
    tried = tried.with_importance(shares)
    save(out / FILE, tried)
    return tried


def asked_of(
    specs: list[RunSpec],
    grounds: dict[str, Ground],
    *,
    objective: Objective,
    trials: int,
    sampler_seed: int,
    dataset: str,
    encoder: str,
) -> Tuning:
    """A search in which nothing was tried yet."""
    first = specs[0]
    return Tuning(
        objective=objective,
        trials=trials,
        budget=first.budget,
        sampler_seed=sampler_seed,
        dataset=dataset,
        data=first.data.name,
        path=first.data.path,
        encoder=encoder,
        eps=first.eval.main_eps,
        searches={
            spec.row: Search(
                method=spec.method_path or spec.method, fixed=spec.settings, space=grounds[spec.row].space, trials=[]
            )
            for spec in specs
        },
    )
