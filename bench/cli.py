"""The command line: ``bench run | plan | tune | check | baseline | verify | list | report | doctor``.

Exit codes: 0 fine, 1 failure, 2 usage, 3 some cells failed, 4 regression found, 130 interrupted, 143 terminated.
Nothing here imports torch before a command needs it.
"""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import click

from bench import __version__
from bench.commands import consent
from bench.commands.baseline import baseline
from bench.commands.check import check
from bench.commands.compare import compare
from bench.commands.ending import print_ending
from bench.commands.evaluate import evaluate
from bench.commands.options import gather, run_options
from bench.commands.output import check_cap, print_leaderboard, show_plan, summary, too_short
from bench.commands.tune import tune
from bench.commands.where import Where, command_line, engine, engine_options
from bench.runs.child_main import SAVE_EVERY
from bench.script import main_hidden
from bench.spec import UsageError
from bench.text import say

FAILED_CELLS = 3


def print_version(context: click.Context, option: click.Parameter, asked: bool) -> None:
    """``bench 0.1.0 (commit 8d0545e, with changes)``."""
    if not asked or context.resilient_parsing:
        return
    from bench.commit import checkout

    commit, changed = checkout(Path(__file__).parent)
    of_checkout = f" (commit {commit[:7]}{', with changes' * bool(changed)})" if commit else ""
    say(f"bench {__version__}{of_checkout}")
    context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=print_version,
    help="Show the version, and the commit of the checkout if there is one.",
)  # fmt: skip
def cli() -> None:
    """Clean accuracy, adversarial robustness and cost of self-supervised methods under equal training time."""


@cli.command()
@run_options
@click.option("--out", type=click.Path(path_type=Path), help="folder of the results  [runs/<data>-<budget>-<hash>]")
@click.option(
    "--checkpoint-every",
    default=f"{SAVE_EVERY / 60:g}m",
    show_default=True,
    help="training time between two checkpoints",
)
@engine_options
@click.option("--track", help="tell trackers of each run: tensorboard, wandb, mlflow or a .py file; with commas")
@click.option("--again", is_flag=True, help="put aside what other code made in the folder, and make it again")
@click.option("--dry-run", is_flag=True, help="print the plan and stop, as `bench plan`")
@click.option("--yes", is_flag=True, help="do not ask before hours of work")
def run(
    out: Path | None,
    checkpoint_every: str,
    where: Where,
    track: str | None,
    again: bool,
    dry_run: bool,
    yes: bool,
    **given: Any,
) -> int:
    """Train, evaluate and report every method under the same budget; the same command goes on where it stopped."""
    from bench.options import door
    from bench.options.options import parse_seconds

    if bare := consent.offered(given, yes):
        given["budget"] = (consent.MAIN_BUDGET,)
    options = gather(given)
    door.check(options)
    every = parse_seconds(checkpoint_every, "--checkpoint-every")
    until = where.until()
    trackers: list[str] = []
    if track is not None:
        from bench.tracking.tracking import parse_trackers

        trackers = parse_trackers(track)

    # what is slow to import comes after what can be refused
    from bench.engines.local import local_jobs
    from bench.options.resolve import resolve
    from bench.options.tuned import read_tuning
    from bench.runs import torchrun
    from bench.runs.conduct import build_report, default_out, make_manifest, opened, run_all
    from bench.runs.measuring import measure_plan
    from bench.runs.plan import duration, total_seconds
    from bench.runs.progress import Display
    from bench.storage.store import load_manifest, load_records
    from bench.tracking.tracking import Tracking

    if bare and not yes:
        consent.show_offer(options)
        if not (yes := consent.agreed("Go on?")):
            return 0
    here = torchrun.place()
    if here is not None:
        others = {"engine": where.engine != "local", "jobs": where.jobs is not None}
        others |= {"deadline": where.deadline is not None, "track": track is not None}
        torchrun.check(here, options.gpus_per_run, **others)
        options = options.model_copy(update={"gpus_per_run": here.size})
    specs, budget, total, data = resolve(options, where.here)
    if dry_run and here is not None and here.rank > 0:
        return 0
    if dry_run:
        return show_plan(specs, local_jobs(specs, options.device, where.jobs)[0], total, data.label, as_json=False)
    out = out or default_out(options, specs)
    tuning = read_tuning(options.tuned) if options.tuned else None
    manifest = make_manifest(specs, budget, total, data, command_line(), tuning)
    if here is not None:
        left = torchrun.run(here, out, manifest, every, again)
        return 0 if left is None else show_run(out, left)
    with opened(out, manifest, again=again) as lock, Display() as display:
        display.line(f"{data.label}: {data.train} training and {data.test} test images; results in {out}")
        todo = [record.spec for record in load_records(out, []) if record.status in ("pending", "preempted", "failed")]
        estimates = []
        if todo and where.here:
            at_once = local_jobs(todo, options.device, where.jobs)[0]
            estimates = measure_plan(todo, out / "plan-log.txt", display.line, at_once)
        check_cap(total, estimates)
        with (
            engine(where, options, out, specs, every, lock) as made_by,
            Tracking(trackers, out, display.line, load_manifest(out).model_dump_json()) as tracking,
        ):
            if estimates:
                display.line(summary(estimates, made_by.slots))
                for line in too_short(estimates, todo):
                    display.line(line, "yellow")
                planned = total_seconds(estimates, made_by.slots)
                if planned > consent.LONG and not yes and consent.on_terminal():
                    question = f"About {duration(planned)} of work: go on?"
                    if not display.ask(lambda: consent.agreed(question)):
                        return 0
            unfinished = run_all(out, specs, display, estimates, made_by, until, lock, tracking)
        build_report(out, display)
    return show_run(out, unfinished)


def show_run(out: Path, unfinished: list[str]) -> int:
    """Print the tables of a run folder and where everything is: the exit code."""
    print_leaderboard(out)
    say(f"tables: {out / 'leaderboard.csv'}, {out / 'results.csv'}")
    for name in ("report.pdf", "report.html"):
        if (out / name).is_file():
            say(f"report: {out / name}")
    if unfinished:
        say(f"not finished: {', '.join(unfinished)}", err=True)
    print_ending(out)
    return FAILED_CELLS if unfinished else 0


@cli.command()
@run_options
@click.option("--cluster", type=click.Path(path_type=Path), help="nodes, GPUs and prices in a .toml: docs/cluster.md")
@click.option("--json", "as_json", is_flag=True, help="one JSON document")
def plan(cluster: Path | None, as_json: bool, **given: Any) -> int:
    """What a run would take: cells, time, memory; on a cluster also makespan, cost and where more GPUs stop helping."""
    from bench.engines.cluster import load_cluster
    from bench.engines.local import local_jobs
    from bench.options import door

    nodes = load_cluster(cluster) if cluster else None
    options = gather(given)
    door.check(options)
    from bench.options.resolve import resolve  # slow to import

    specs, _, total, data = resolve(options)
    return show_plan(specs, local_jobs(specs, options.device, None)[0], total, data.label, as_json, nodes)


@cli.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--data-root", help="where datasets are kept (or BENCH_DATA_ROOT)")
@click.option("--device", default="auto", help="auto, cpu or cuda:0  [auto]")
def verify(folder: Path, data_root: str | None, device: str) -> int:
    """Recompute the published numbers from stored weights, probes and adversarial images: exit 1 on any difference."""
    from bench.storage.store import check_folder

    check_folder(folder)

    from bench.audit.verify import other_code, verify

    checked, differences = verify(folder, data_root, device)
    if code := other_code(folder):
        say(code)
    for difference in differences:
        say(difference)
    say(f"{len(differences)} differences in {checked} recomputed numbers of {folder}")
    return 1 if differences else 0


@cli.command("list")
@click.argument("kind", metavar="methods|attacks|encoders|datasets|protocols|trackers|suites")
@click.option("--json", "as_json", is_flag=True, help="one JSON document")
def list_(kind: str, as_json: bool) -> int:
    """What there is, a line each: name, what it is, where it comes from; methods by their groups."""
    from bench.commands.listing import items, lines

    listed = items(kind)
    if as_json:
        click.echo(json.dumps(listed, indent=1))
    else:
        for line in lines(listed):
            say(line)
    return 0


@cli.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="folder of the report; needed for several DIR  [DIR]")
@click.option("--tex", is_flag=True, help="also leaderboard.tex, for a paper (booktabs)")
@click.option("--md", is_flag=True, help="also leaderboard.md, for a repository")
@click.option("--prices", type=click.Path(path_type=Path), help="of an hour of a device, and CO2 of a kWh, in a .toml")
def report(folders: tuple[Path, ...], out: Path | None, tex: bool, md: bool, prices: Path | None) -> int:
    """Rebuild all tables, figures and both reports of a run, or merge several runs into one report in --out."""
    from bench.storage.disk import DiskError
    from bench.storage.store import check_folder

    for folder in folders:
        check_folder(folder)
    if len(folders) > 1 and out is None:
        raise UsageError(f"expected --out DIR for a report over {len(folders)} folders, got none")
    target = out or folders[0]

    from reports.build import build, build_merged
    from reports.prices import read_prices

    given = read_prices(prices) if prices else None
    try:
        texts = ["tex"] * tex + ["md"] * md
        several = len(folders) > 1
        warnings = build_merged(folders, target, texts, given) if several else build(folders[0], out, texts, given)
    except DiskError as error:
        raise DiskError(f"{error}; or put the report into another folder with --out DIR") from None
    except OSError as error:
        raise UsageError(f"cannot write to {target}: {error.strerror}; choose another --out") from None
    for warning in warnings:
        say(f"warning: {warning}", err=True)
    print_leaderboard(target)
    say(f"report: {target / 'report.pdf'}, {target / 'report.html'}")
    return 1 if warnings else 0


@cli.command()
@click.option("--data-root", help="where datasets are kept (or BENCH_DATA_ROOT)")
@click.option("--json", "as_json", is_flag=True, help="one JSON document")
def doctor(data_root: str | None, as_json: bool) -> int:
    """What this machine has: torch, GPU, data, optional extras, and packages that shadow ours."""
    from bench.commands.doctor import examine

    sections = examine(data_root)
    if as_json:
        click.echo(json.dumps(sections, indent=1))
    else:
        for section, lines in sections.items():
            say(section)
            for name, value in lines.items():
                say(f"  {name:<16} {value}")
    return 1 if sections["shadowed packages"] else 0


cli.add_command(evaluate)
cli.add_command(check)
cli.add_command(baseline)
cli.add_command(compare)
cli.add_command(tune)


def main(arguments: list[str] | None = None) -> None:
    """The console script: one clear line for a mistake, the right exit code for everything."""
    from bench.commands.doctor import refuse_hidden
    from bench.storage.disk import DiskError
    from bench.storage.signals import EXIT_INTERRUPTED, Interrupted, signals_raise

    words = sys.argv[1:] if arguments is None else arguments
    try:
        if any(not word.isascii() and word != word.encode(errors="replace").decode() for word in words):
            raise UsageError("expected arguments in UTF-8, got other bytes")
        if words[:1] != ["doctor"]:  # which says it beside all else
            refuse_hidden()
        with signals_raise(), main_hidden():
            code = cli.main(args=words, prog_name="bench", obj=words, standalone_mode=False)
    except click.exceptions.Exit as leaving:
        code = leaving.exit_code
    except click.Abort:
        code = 130
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "bench"
        say(f"bench: {error.format_message()}; see {where} --help", err=True)
        code = 2
    except UsageError as error:
        say(f"bench: {error}", err=True)
        code = 2
    except Interrupted as stopped:
        say("bench: stopped; the same command goes on from here", err=True)
        code = EXIT_INTERRUPTED[signal.Signals(stopped.signum)]
    except KeyboardInterrupt:
        code = 130
    except (DiskError, OSError) as error:
        click.echo(f"bench: {error}", err=True)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
