"""``bench tune``: the same search over the settings of every method, judged on held-out training images."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from bench.commands import consent
from bench.commands.options import gather, training_options
from bench.commands.output import show, summary, table
from bench.commands.where import Where, command_line, engine, engine_options
from bench.names import check_path
from bench.runs.child_main import SAVE_EVERY
from bench.spec import UsageError
from bench.text import say
from bench.tuned import SEED, Objective

if TYPE_CHECKING:
    from bench.options.options import Options
    from bench.record import Record
    from bench.spec import RunSpec
    from bench.tuned import Tuning

UNFINISHED = 3
IMAGES = 1000  # at most, that PGD attacks in every trial
# What every trial is judged by: a linear probe, clean and under PGD, on images that it was not trained on.
JUDGED: dict[str, Any] = {
    "attacks": "pgd",
    "protocols": "linear",
    "eval": "quick",
    "audit": "off",
    "curve": "off",
    "threats": None,
    "eps": None,
    "held_out": True,
    "test_images": None,
    "total_budget": None,
    "eval_budget": None,
    "search": "fp32",
    "tuned": None,
    "seeds": f"{SEED},",
    "attack_images": f"pgd={IMAGES}",
}


@click.command("tune")
@training_options
@click.option("--trials", type=click.IntRange(1, 1000), default=16, show_default=True, help="of every method")
@click.option(
    "--objective", type=click.Choice(get_args(Objective)), default="robust", show_default=True,
    help="what is maximized: accuracy under PGD, on clean images, or the mean of both along their front",
)  # fmt: skip
@click.option("--space", "space_file", type=click.Path(path_type=Path), help="ranges of settings in a .toml file")
@click.option("--sampler-seed", type=click.IntRange(0, 10**6), default=0, show_default=True, help="the same for all")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="folder of the search, for run --tuned")
@engine_options
@click.option("--again", is_flag=True, help="put aside what other code made in the folder, and make it again")
@click.option("--yes", is_flag=True, help="do not ask before hours of work")
def tune(
    trials: int,
    objective: Objective,
    space_file: Path | None,
    sampler_seed: int,
    out: Path,
    where: Where,
    again: bool,
    yes: bool,
    **given: Any,
) -> int:
    """Search the settings of every method with the same trials and budget; the same command goes on where it stopped.

    Trials are judged on held-out training images; the test images are not read. Trial 0 is as published.
    """
    from bench.options import door
    from bench.tuning.sampler import check_package

    options = gather(given | {name: JUDGED[name] for name in ("attacks", "protocols")}).model_copy(update=JUDGED)
    if options.budget is None or "," in options.budget:
        raise UsageError(f"expected --budget of each trial, such as 5m or 150up, got {options.budget or 'none'}")
    door.check(options)
    check_package()

    # what is slow to import comes after what can be refused
    from bench import registry
    from bench.options.resolve import resolve
    from bench.runs import torchrun
    from bench.runs.conduct import make_manifest, opened, run_all
    from bench.runs.progress import Display
    from bench.storage.store import load_records
    from bench.tuning.search import as_trial, asked_of, round_folder, search
    from bench.tuning.space import check_targets, ground, read_spaces

    if torchrun.place() is not None:
        raise UsageError("expected bench tune without torchrun, which makes one run; use --gpus-per-run")
    specs, budget, _, data = resolve(options, where.here)
    if budget is None:
        raise UsageError("expected one budget for the trials of all methods, got rows with budgets of their own")
    dataset = registry.load("dataset", options.data_spec.name).Dataset()
    specs = [as_trial(spec) for spec in specs]
    spaces = read_spaces(space_file) if space_file else {}
    check_targets(spaces, specs)
    grounds = {spec.row: ground(spec, dataset.OVERRIDES, spaces) for spec in specs}
    check_path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror}; choose another --out") from None
    for row, searched in grounds.items():
        say(f"{row}: {', '.join(f'{name} {bounds}' for name, bounds in searched.space.items())}", err=True)
    if where.here and not round_folder(out, 0).exists() and not accepted(out, specs, options, where, trials, yes):
        return 0
    until = where.until()

    def make_round(folder: Path, runs: "list[RunSpec]") -> "list[Record]":
        manifest = make_manifest(runs, budget, None, data, command_line())
        with opened(folder, manifest, again=again) as lock, Display() as display:
            display.line(f"trial {int(folder.name)}, of 0 to {trials - 1}", "bold")
            with engine(where, options, folder, runs, SAVE_EVERY, lock) as made_by:
                run_all(folder, runs, display, None, made_by, until, lock)
        return load_records(folder)

    asked = asked_of(
        specs,
        grounds,
        objective=objective,
        trials=trials,
        sampler_seed=sampler_seed,
        dataset=data.label,
        encoder=options.encoder or dataset.encoder,
    )
    tuned = search(out, specs, grounds, asked, make_round)
    print_tuning(out, tuned)
    return 0 if tuned.done else UNFINISHED


def accepted(out: Path, specs: "list[RunSpec]", options: "Options", where: Where, trials: int, yes: bool) -> bool:
    """Say what the search will take on this machine: whether it may begin. Raises UsageError."""
    from bench.engines.local import local_jobs
    from bench.runs.measuring import measure_plan
    from bench.runs.plan import duration, total_seconds

    at_once = local_jobs(specs, options.device, where.jobs)[0]
    with tempfile.TemporaryDirectory() as folder:
        estimates = measure_plan(specs, Path(folder) / "log.txt", lambda text: say(text, err=True), at_once)
    if not estimates:
        return True
    planned = trials * total_seconds(estimates, at_once)
    say(f"of one trial each, the {summary(estimates, at_once)}", err=True)
    methods = f"{len(specs)} method{'s' * (len(specs) > 1)}"
    say(f"{trials} trial{'s' * (trials > 1)} of {methods}: about {duration(planned)}", err=True)
    return planned <= consent.LONG or yes or not consent.on_terminal() or consent.agreed("Go on?")


def print_tuning(out: Path, tuned: "Tuning") -> None:
    """What the search has found, the table of the report, and what follows."""
    from reports.tuning import found

    if not all(search.trials for search in tuned.searches.values()):
        say("no trial has ended: the same command goes on", err=True)
        return
    told = found(tuned)
    show(table(f"{tuned.dataset}: {tuned}", [column["title"] for column in told["columns"]], told["rows"]))
    say(f"{told['caption']} The best of many is flattered by its choice.")
    if tuned.done:
        say(f"next: bench run --tuned {out} --budget ..., for real runs of the published and of the tuned settings")
    else:
        say("not finished: the same command goes on", err=True)
