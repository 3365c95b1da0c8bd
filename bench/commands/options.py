"""The options that say what is run, shared by the commands that run, plan or tune, and what they come to."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from bench.spec import UsageError

if TYPE_CHECKING:
    from bench.options.options import Options


TRAINED = [
    click.option("--methods", help="all, paper, field, clean, names with commas, or a path to a file  [all]"),
    click.option("--budget", multiple=True, help="training of each run: 90s, 30m, 2h, 20ep (epochs), 5000up; or 5m,2h"),
    click.option(
        "--data", help="digits, cifar10, cifar100, parquet:DIR, folder:DIR, imagenet:DIR, synthetic  [cifar10]"
    ),
    click.option("--image-size", type=int, help="resize images of parquet:, folder:, imagenet: [256 of imagenet]"),
    click.option("--classes", help="of imagenet: a file with a wnid on each line  [all]"),
    click.option("--data-root", help="where datasets are kept (or BENCH_DATA_ROOT)"),
    click.option("--train-images", type=int, help="the first N of a fixed balanced shuffle"),
    click.option("--encoder", help="a name, a path to a .py file, torchvision:NAME or timm:NAME  [the dataset's]"),
    click.option("--suite", help="options from a file: a name of `bench list suites` or a .toml"),
    click.option("--set", "settings", multiple=True, help="method.key=value, attack.key=value or all.key=value"),
    click.option("--threads", type=int, help="CPU threads of each run  [1 on a CPU]"),
    click.option("--device", help="auto, cpu or cuda:0  [auto]"),
    click.option("--gpus-per-run", type=int, help="GPUs that share each batch of a run (on a CPU: processes)  [1]"),
    click.option("--precision", help="of training: fp32 or bf16  [bf16 on CUDA, else fp32]"),
    click.option("--compile/--no-compile", default=None, help="compile encoder and projector  [no]"),
]
RUN = [
    click.option("--tuned", help="folder of `bench tune`: beside each row one with the best settings found there"),
    click.option("--total-budget", multiple=True, help="training of all runs together, split evenly"),
    click.option("--test-images", type=int, help="the first N of a fixed balanced shuffle"),
    click.option("--seeds", help="how many, from 0; or a list with a comma: 0,7  [1]"),
    click.option("--attacks", help="names, or paths to attack files, with commas  [pgd,autoattack]"),
    click.option(
        "--attack-images",
        help="pgd=100,curve=50,autoattack.multi_patch=16; beyond --eval quick only where nothing is ranked",
    ),
    click.option(
        "--search", help="precision of the attacks' own passes, on a GPU: fp32 or tf32; float32 decides  [fp32]"
    ),
    click.option("--eps", help="radii of evaluation: 4/255,8/255; l2:0.5 of attacks in l2  [the dataset's]"),
    click.option("--threats", help="linf:8/255,l2:0.5,corruptions: balls, in l2 for pgd and autoattack too  [--eps]"),
    click.option(
        "--protocols",
        help="names of `bench list protocols`, or .py files, with commas  [linear, multi_patch, published_eval]",
    ),
    click.option("--eval", help="quick, standard or full  [quick on digits, else standard]"),
    click.option("--audit", help="checks of the ranked numbers: off, core or full  [core at quick, else full]"),
    click.option("--curve", help="accuracy over the training: off, clean or robust  [off at quick, else robust]"),
    click.option("--eval-budget", help="time for each evaluation, as 20m; then AutoAttack is an upper bound"),
]


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what is run and how it is scored."""
    return with_options([*TRAINED, *RUN], command)


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Those of them that say what is trained, on which images and where."""
    return with_options(TRAINED, command)


def with_options(options: list[Callable[..., Any]], command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with these options, which its help lists in their order."""
    for option in reversed(options):
        command = option(command)
    return command


def gather(given: dict[str, Any]) -> "Options":
    """Options from the command line on top of those of a suite. Raises UsageError."""
    from bench.options.options import load_suite, options_of, parse_settings
    from bench.options.tuned import tuned_values

    given = {key: value for key, value in given.items() if value not in (None, ())}
    values: dict[str, Any] = load_suite(given.pop("suite")) if "suite" in given else {}
    if "tuned" in given and not values and not {"methods", "data"} <= given.keys():
        values = tuned_values(given["tuned"])
    settings = {target: dict(changed) for target, changed in values.pop("settings", {}).items()}
    if settings and {"attacks", "protocols"} & given.keys():  # what the suite sets for one that the command leaves out
        for name in asked_attacks_and_protocols(values) - asked_attacks_and_protocols(values | given):
            settings.pop(name, None)
    for target, changed in parse_settings(given.pop("settings", ())).items():
        settings.setdefault(target, {}).update(changed)
    for key in ("budget", "total_budget"):
        if key in given and len(given[key]) != 1:
            raise UsageError(f"expected one budget, got {' and '.join(given[key])}; a run has exactly one")
        if key in given:
            given[key] = given[key][0]
            if key == "budget":  # also over what the rows of a suite state
                values["rows"] = [row | {"budget": None} for row in values.get("rows", [])]
            if not ("budget" in given and "total_budget" in given):
                values.pop("total_budget" if key == "budget" else "budget", None)  # the command line wins
    return options_of(values | given | {"settings": settings})


def asked_attacks_and_protocols(values: dict[str, Any]) -> set[str]:
    """The names that settings may be given for, of what a suite or the command line says. Raises UsageError."""
    from bench.options.options import asked_attacks, options_of
    from bench.options.protocols import asked_protocols

    said = options_of({key: values[key] for key in ("attacks", "protocols", "eps", "threats") if key in values})
    return {*asked_attacks(said), *asked_protocols(said)}
