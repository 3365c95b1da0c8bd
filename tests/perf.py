"""How fast the training steps are: each one beside its textbook twin (``tests.reference``), in one process.

Both sides do the same mathematics from the same weights and take turns, so a slow moment of the machine falls on both.
Steps are timed on given views; augmentation is timed on its own. Peak memory is that of one step in a fresh process.
"""

import dataclasses
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Literal, NamedTuple, Self

import click
import torch
from torch import Tensor, nn

from bench import registry
from bench.commands.output import show, table
from bench.data.images import ImageSet
from bench.device import device as devices
from bench.encoders.common.build import build_encoder
from bench.options.options import load_suite
from bench.random import Draws
from bench.runs.plan import duration
from bench.spec import Budget, Data, Precision, UsageError, unknown
from bench.training.state import begun
from bench.training.step import update
from bench.training.train import train
from methods.common.base import BaseMethod
from methods.common.losses import coding_rate
from tests.reference import augment as textbook_augment
from tests.reference import losses as textbook_losses
from tests.reference import optim as textbook_optim
from tests.reference import step as textbook

Side = Literal["fast", "textbook"]
SIDES: tuple[Side, ...] = ("fast", "textbook")
STEPS = {"free_step": "cf_amc_ssl", "emp_pgd_step": "emp_ssl_adv", "simclr_pgd_step": "simclr_adv"}
NAMES = (*STEPS, "coding_rate", "augmentation")
SHORTEST = 0.2  # seconds of one measurement; shorter work is repeated within it
LEAST_MEMORY = 32 * 2**20  # bytes; resident memory does not tell smaller steps apart
PAPER_IMAGES = 50_000


class Size(NamedTuple):
    """Sizes of what is timed."""

    encoder: str
    pixels: int
    settings: dict[str, Any]  # of the methods
    batches: dict[str, int]  # images
    embeddings: tuple[int, int, int]  # of the coding rate: views, batch, width


FULL = Size(
    "resnet18",
    32,
    {},
    {"free_step": 32, "emp_pgd_step": 4, "simclr_pgd_step": 32, "augmentation": 32},
    (16, 100, 1024),
)
QUICK = Size(
    "resnet8",
    16,
    {"feature_width": 64, "hidden_width": 64, "embedding_width": 64},
    {"free_step": 4, "emp_pgd_step": 4, "simclr_pgd_step": 8, "augmentation": 8},
    (4, 16, 64),
)


class Measurement(Data):
    """One row: how many times as fast as the textbook (median and extremes of the repeats), and at what cost."""

    name: str
    ratio: float
    ratio_lo: float
    ratio_hi: float
    per_second: float  # crops of the batch, however often a step passes them; embeddings for the coding rate
    peak_memory_ratio: float | None  # fast / textbook; None where the textbook needs less than 32 MiB
    matrix_share: float | None  # of the device's measured peak of matrix products; None where it is not a step

    @property
    def cells(self) -> list[str]:
        """The row for people."""
        return [
            self.name,
            f"{self.ratio:.2f} [{self.ratio_lo:.2f}-{self.ratio_hi:.2f}]",
            f"{self.per_second:.4g}",
            "" if self.peak_memory_ratio is None else f"{self.peak_memory_ratio:.2f}",
            "" if self.matrix_share is None else f"{100 * self.matrix_share:.0f} %",
        ]


class Work(NamedTuple):
    """Something to be timed, and how many crops (or embeddings) one call deals with."""

    run: Callable[[], object]
    items: int


class Setup(NamedTuple):
    """What is measured, and how."""

    names: tuple[str, ...]
    device: torch.device
    precision: Precision  # of the fast side
    repeats: int
    quick: bool

    @classmethod
    def of(
        cls,
        only: str | None,
        device: str,
        precision: Precision | None,
        repeats: int,
        quick: bool,
        threads: int | None,
    ) -> Self:
        """From the command line, the process prepared for it. Raises UsageError."""
        names = tuple(only.split(",")) if only is not None else NAMES
        for name in names:
            if name not in NAMES:
                raise UsageError(unknown("measurement", name, NAMES))
        if repeats < 1:
            raise UsageError(f"expected at least 1 repeat, got {repeats}")
        where = devices.resolve(device)
        devices.prepare(where, threads)
        return cls(names, where, precision or devices.default_precision(where), repeats, quick)

    @property
    def title(self) -> str:
        """What the table compares."""
        fast = f"{self.precision} on {self.device}, {torch.get_num_threads()} CPU threads, {self.repeats} repeats"
        return f"{fast}; 1 is the textbook in fp32 on the same threads, for augmentation PIL in one"


def measure(setup: Setup) -> Iterator[Measurement]:
    """A measurement for each name, in their order."""
    _, device, precision, repeats, quick = setup
    for name in setup.names:
        memory = memory_ratio(name, device, precision, quick)
        fast, slow = (build(name, side, device, precision, quick) for side in SIDES)
        fast_times, slow_times = interleaved(fast, slow, device, repeats)
        ratios = [slower / faster for faster, slower in zip(fast_times, slow_times, strict=True)]
        seconds = statistics.median(fast_times)
        share = None
        if name in STEPS:
            with devices.Meter(image_channels=3) as meter:
                fast.run()
            share = meter.flops / seconds / devices.matrix_peak(device, precision)
        yield Measurement(
            name=name,
            ratio=statistics.median(ratios),
            ratio_lo=min(ratios),
            ratio_hi=max(ratios),
            per_second=fast.items / seconds,
            peak_memory_ratio=memory,
            matrix_share=share,
        )


def tables(setup: Setup, measured: list[Measurement], updates: int) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """(title, heads, rows) of what is shown: the measurements and, on a GPU, the paper's rows."""
    heads = ["", "speed [min-max]", "crops/s", "peak memory", "of matrix peak"]
    yield setup.title, heads, [each.cells for each in measured]
    if setup.device.type == "cuda" and not setup.quick:
        heads = ["method", "updates", "updates/s", "training"]
        projected = project_paper(setup.device, setup.precision, updates)
        yield f"the paper's rows, from {updates} updates each", heads, [each.cells for each in projected]


# ---------------------------------------------------------------- time and memory


def interleaved(fast: Work, slow: Work, device: torch.device, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of one call of each side, ``repeats`` times, in turns; the first call of each side warms up."""
    calls = [max(1, math.ceil(SHORTEST / seconds(work, device, 1))) for work in (fast, slow)]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for side, work in enumerate((fast, slow)):
            times[side].append(seconds(work, device, calls[side]))
    return times


def seconds(work: Work, device: torch.device, calls: int) -> float:
    """Mean seconds of a call."""
    devices.synchronize(device)
    began = time.perf_counter()
    for _ in range(calls):
        work.run()
    devices.synchronize(device)
    return (time.perf_counter() - began) / calls


def memory_ratio(name: str, device: torch.device, precision: Precision, quick: bool) -> float | None:
    """Peak memory of the first step, fast over textbook; None where the textbook's is too small to tell."""
    threads = torch.get_num_threads()
    growths = []
    for side in SIDES:
        if device.type == "cuda":  # its allocator counts what is allocated, and can be asked anew
            growths.append(growth(name, side, str(device), precision, quick, threads))
            continue
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:  # peaks are those of a process
            growths.append(process.submit(growth, name, side, str(device), precision, quick, threads).result())
    return growths[0] / growths[1] if growths[1] >= LEAST_MEMORY else None


def growth(name: str, side: Side, device_name: str, precision: Precision, quick: bool, threads: int) -> int:
    """Bytes by which the peak of this process grows in two steps, the second beside what the optimizer keeps."""
    device = devices.resolve(device_name)
    devices.prepare(device, threads)
    work = build(name, side, device, precision, quick)
    devices.reset_peak_memory(device)
    before = devices.peak_memory_bytes(device)
    work.run()
    work.run()
    return devices.peak_memory_bytes(device) - before


# ---------------------------------------------------------------- what is timed


def build(name: str, side: Side, device: torch.device, precision: Precision, quick: bool) -> Work:
    """One side of a measurement, ready to run."""
    size = QUICK if quick else FULL
    if name == "coding_rate":
        return build_coding_rate(side, size, device)
    method = build_method(STEPS.get(name, "emp_ssl"), size.encoder, size.settings | {"batch": size.batches[name]})
    config, shape = method.config, (3, size.pixels, size.pixels)
    items = config.views * config.batch
    if name == "augmentation":
        return Work(build_augmentation(side, method, shape, device), items)
    views = torch.rand(config.views, config.batch, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    step = fast_step(method, views, device, precision) if side == "fast" else textbook_step(method, views, device)
    return Work(step, items)


def build_method(name: str, encoder: str, settings: dict[str, Any]) -> BaseMethod:
    """A method of the paper with some settings changed; weights are the same each time."""
    module = registry.load("method", name)
    config = dataclasses.replace(module.Config(), **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method: BaseMethod = module.Method(config).attach(build_encoder(encoder, 3, config.feature_width))
    return method


def fast_step(method: BaseMethod, views: Tensor, device: torch.device, precision: Precision) -> Callable[[], None]:
    """All updates on one batch of views, as the trainer makes them."""
    devices.place(method, device).train()
    training = begun(method, method.config.batch, Budget(amount=1, unit="updates"), device)

    def run() -> None:
        with devices.mixed(method, precision):
            for loss in training.adversary.losses(method, views):
                update(training, loss)

    return run


def textbook_step(method: BaseMethod, views: Tensor, device: torch.device) -> Callable[[], object]:
    """The same by the textbook, in float32 and plain memory format."""
    config: Any = method.config
    network = nn.Sequential(method.encoder, method.projector).to(device).train()
    optimizer = textbook_optim.LARS(network.parameters(), config.lr, config.momentum, config.weight_decay, config.trust)
    if hasattr(config, "temperature"):
        loss = textbook.simclr(network, config.temperature)
    else:
        loss = textbook.emp_ssl(network, config.invariance, config.coding_eps)
    attack = {"moves": method.moves, "eps": config.eps, "step": config.step}
    if config.adversary == "free":
        delta = torch.zeros_like(views)
        return lambda: textbook.free_update(loss, views, delta, optimizer, **attack, replays=config.replays)
    in_eval_mode = config.attack_batch_norm == "eval"
    return lambda: textbook.pgd_update(
        network, loss, views, optimizer, **attack, steps=config.steps, in_eval_mode=in_eval_mode
    )


def build_coding_rate(side: Side, size: Size, device: torch.device) -> Work:
    """The coding rate alone, forward and backward."""
    z = torch.randn(size.embeddings, generator=torch.Generator().manual_seed(0)).to(device)
    z = nn.functional.normalize(z, dim=2).requires_grad_()
    rate = coding_rate if side == "fast" else textbook_losses.coding_rate
    return Work(lambda: torch.autograd.grad(rate(z, 0.2), z), size.embeddings[0] * size.embeddings[1])


def build_augmentation(
    side: Side, method: BaseMethod, shape: tuple[int, int, int], device: torch.device
) -> Callable[[], object]:
    """The views of one batch of smooth pictures; the textbook's PIL has one thread and stays on the CPU."""
    c = method.config
    coarse = torch.rand(c.batch, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.interpolate(coarse, size=shape[1:], mode="bicubic")
    pictures = smooth.clamp(0, 1).mul(255).round().to(torch.uint8)
    if side == "fast":
        images, ids = pictures.to(device), torch.arange(c.batch)
        return lambda: method.augment(images, Draws(0, 0, ids, c.views, device))
    return lambda: textbook_augment.augment(
        pictures,
        c.views,
        scale=c.crop_scale,
        ratio=c.crop_ratio,
        flip=c.flip,
        jitter=c.jitter,
        jitter_probability=c.jitter_probability,
        gray=c.gray,
        blur=c.blur,
        solarize=c.solarize,
    )


# ---------------------------------------------------------------- the paper's rows


class Projection(Data):
    """Minutes of training that a row of the paper's table would take here, from measured updates."""

    method: str
    updates: int  # of the whole row
    updates_per_second: float
    minutes: float

    @property
    def cells(self) -> list[str]:
        """The row for people."""
        return [self.method, str(self.updates), f"{self.updates_per_second:.3g}", duration(60 * self.minutes)]


def project_paper(
    device: torch.device, precision: Precision, updates: int, encoder: str = "resnet18", **settings: Any
) -> Iterator[Projection]:
    """The rows of suite ``paper``, each from ``updates`` real updates at its full batch, augmentation included.

    Raises UsageError unless ``updates`` is at least 1.
    """
    if updates < 1:
        raise UsageError(f"expected at least 1 update, got {updates}")
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (2048, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images = ImageSet(pictures, torch.arange(2048) % 10, classes=10, label="noise")
    for row in load_suite("paper")["rows"]:
        method = build_method(row["method"], encoder, row["settings"] | settings)
        result = train(method, images, Budget(amount=updates, unit="updates"), 0, device, precision=precision)
        rate = result.updates / result.train_seconds
        total = row_updates(Budget.parse(row["budget"]), method)
        yield Projection(method=row["method"], updates=total, updates_per_second=rate, minutes=total / rate / 60)


def row_updates(budget: Budget, method: BaseMethod) -> int:
    """Updates of a budget in epochs of CIFAR's 50,000 images, the last incomplete batch dropped."""
    per_epoch = PAPER_IMAGES // method.config.batch * method.config.updates_per_batch
    return math.ceil(budget.amount * per_epoch)


# ---------------------------------------------------------------- the command


@click.command()
@click.option("--only", help=f"{', '.join(NAMES)}; with commas  [all]")
@click.option("--repeats", type=int, default=5, show_default=True, help="measurements of each side, in turns")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="of the fast side  [bf16 on CUDA, else fp32]")
@click.option("--updates", type=int, default=200, show_default=True, help="measured for each row of the paper (GPU)")
@click.option("--quick", is_flag=True, help="a small encoder and few images, in seconds")
@click.option("--threads", type=int, help="CPU threads of torch  [all cores]")
@click.option("--device", default="auto", help="auto, cpu or cuda:0  [auto]")
@click.option("--json", "as_json", is_flag=True, help="one JSON document: the measurements alone")
def perf(as_json: bool, updates: int, **given: Any) -> None:
    """Time each training step beside its plain textbook twin; on a GPU also project the rows of the paper."""
    setup = Setup.of(**given)
    measured = list(measure(setup))
    if as_json:
        click.echo(json.dumps([each.model_dump(exclude={"matrix_share"}) for each in measured], indent=1))
        return
    for title, heads, rows in tables(setup, measured, updates):
        show(table(title, heads, rows))


def main(arguments: list[str] | None = None) -> int:
    """The exit code; a mistake is one line on standard error."""
    try:
        perf.main(arguments, standalone_mode=False)
    except (UsageError, click.ClickException) as error:
        click.echo(error.format_message() if isinstance(error, click.ClickException) else str(error), err=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
