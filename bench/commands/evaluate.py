"""``bench evaluate``: audit and score anybody's encoder or classifier, in a process of its own."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.commands.output import print_leaderboard, say_log
from bench.commands.where import command_line
from bench.events import Event
from bench.spec import UsageError
from bench.text import say

if TYPE_CHECKING:
    from bench.options.external_request import Request

FAILED_CELLS = 3


@click.command("evaluate")
@click.argument("source", metavar="FILE|package.module:factory")
@click.option("--architecture", help="of a FILE: resnet18, resnet8, torchvision:NAME, timm:NAME or a .py file")
@click.option("--prefix", help="of a file of torch with weights in several places: that of the encoder's names")
@click.option("--branch", help="of a file of torch with several batch norms in each place: which of them")
@click.option("--kind", type=click.Choice(["encoder", "classifier"]), default="encoder", show_default=True,
              help="an encoder gets heads (--protocols); a classifier's own logits are scored")  # fmt: skip
@click.option("--normalize", help="a first layer: mean,std, or all means and then all stds of the channels")
@click.option("--name", help="in every table  [that of the file or the factory]")
@click.option("--data", default="cifar10", show_default=True,
              help="digits, cifar10, cifar100, parquet:DIR, folder:DIR, imagenet:DIR")  # fmt: skip
@click.option("--image-size", type=int, help="of folder:, parquet: and imagenet:, resized and cut square")
@click.option("--classes", help="of imagenet: a file with a wnid on each line")
@click.option("--data-root", help="where datasets are kept (or BENCH_DATA_ROOT)")
@click.option("--train-images", type=int, help="for the probe: the first N of a fixed balanced shuffle")
@click.option("--test-images", type=int, help="the first N of a fixed balanced shuffle")
@click.option("--attacks", default="pgd,autoattack", show_default=True, help="names, or paths to files, with commas")
@click.option("--protocols", help="heads of an encoder: slf, multi_patch, alf, aff, knn, paths  [linear,multi_patch]")
@click.option("--eps", help="radii: 4/255,8/255; l2:0.5 of attacks in l2  [the dataset's]")
@click.option("--threats", help="linf:8/255,l2:0.5,corruptions: balls, in l2 for pgd and autoattack too  [--eps]")
@click.option("--set", "settings", multiple=True, help="attack.key=value, or protocol.key=value")
@click.option("--eval", help="quick, standard or full  [quick on digits, else standard]")
@click.option("--audit", help="checks of the ranked numbers: off, core or full  [core at quick, else full]")
@click.option("--threads", type=int, help="CPU threads of torch  [all cores]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda:0")
@click.option("--out", type=click.Path(path_type=Path), help="folder of the results  [runs/<name>-<data>-<hash>]")
@click.option("--again", is_flag=True, help="put aside what other code made in the folder, and make it again")
def evaluate(source: str, out: Path | None, again: bool, **given: Any) -> int:
    """Audit and score anybody's encoder or classifier; `bench report` reads the folder that it leaves."""
    request = gather(source, out, **given).model_copy(update={"again": again})

    from bench.storage.store import load_records
    from reports.build import build

    folder = conduct(request)
    for warning in build(folder):
        say(f"warning: {warning}", err=True)
    print_leaderboard(folder)
    say(f"tables: {folder / 'leaderboard.csv'}, {folder / 'results.csv'}")
    whole = all(record.status == "finished" and not record.failed for record in load_records(folder))
    return 0 if whole else FAILED_CELLS


def gather(source: str, out: Path | None, **given: Any) -> "Request":
    """The request, checked as far as that goes without loading the model. Raises UsageError."""
    from bench import registry
    from bench.encoders.common.names import check_encoder_name
    from bench.options import door
    from bench.options.external_request import Request, check_source, is_factory, parse_normalize
    from bench.options.options import check_targets, options_of, parse_settings
    from bench.options.protocols import asked_protocols

    check_source(source, given["architecture"])
    normalize, kind = given.pop("normalize"), given.pop("kind")
    means_and_stds = parse_normalize(normalize) if normalize else ()
    own = {name: given.pop(name, None) for name in ("architecture", "prefix", "branch", "name")} | {"kind": kind}
    if (own["prefix"] or own["branch"]) and (is_factory(source) or source.endswith(".safetensors")):
        raise UsageError(f"expected --prefix and --branch with a file of torch only, got them with {source}")
    if own["architecture"] is not None:
        check_encoder_name(own["architecture"])
    given["settings"] = parse_settings(given["settings"])
    heads = given.pop("protocols", None) or ("linear" if kind == "classifier" else "linear,multi_patch")
    given["protocols"] = heads
    options = options_of({key: value for key, value in given.items() if value is not None})
    protocols = asked_protocols(options)
    if kind == "classifier" and list(protocols) != ["linear"]:
        raise UsageError(f"expected --protocols linear of a classifier, whose own logits are scored, got {heads}")
    check_targets(options, [], protocols)
    door.check_scoring(options)

    from bench.device import device as devices
    from bench.options.scoring import evaluation

    device = devices.resolve(options.device)
    scoring = evaluation(options, registry.load("dataset", options.data_spec.name).Dataset(), device)
    return Request(
        source=source,
        **own,
        normalize=means_and_stds,
        data=options.data_spec,
        eval=scoring.model_copy(update={"protocols": tuple(protocols)}),
        device=str(device),
        threads=options.threads,
        out=str(out) if out else None,
        command=tuple(command_line()),
    )


def conduct(request: "Request") -> Path:
    """Evaluate in a fresh process; the folder of the results.

    Raises UsageError for a model that is refused, and Exit for a failure.
    """
    from bench.engines.child import run_child
    from bench.runs.child_main import task_of
    from bench.runs.external import run_spec
    from bench.runs.progress import Display
    from bench.storage.signals import signals_raise

    messages: list[str] = []
    opened: list[Path] = []
    spec = run_spec(request, weights="")
    with tempfile.TemporaryDirectory() as scratch, signals_raise(), Display() as display:
        log = Path(scratch) / "log.txt"

        def listen(event: Event) -> None:
            if event["event"] == "opened":
                opened.append(Path(event["out"]))
                display.line(f"results in {event['out']}")
            elif event["event"] == "remark":
                display.line(event["message"])
            elif event["event"] == "error":
                messages.append(event["message"])
            else:
                display.event(spec, event)

        code = run_child(task_of("evaluate_foreign", request=request.model_dump(mode="json")), listen, log)
        if code == 2 and messages:
            raise UsageError(messages[-1])
        if code or not opened:
            say_log(log)
            reason = messages[-1] if messages else f"the process ended with code {code}"
            say(f"bench: the evaluation of {request.source} failed: {reason}", err=True)
            raise click.exceptions.Exit(1)
    return opened[-1]
