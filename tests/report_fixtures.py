"""A run folder as the harness would leave it, made of plain numbers: the reports are tested on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from bench.record import (
    Audit,
    Check,
    DataInfo,
    Environment,
    EvalResult,
    Manifest,
    ProbeResult,
    Record,
    Setting,
    TrainResult,
    Verdict,
)
from bench.spec import Budget, DataSpec, EvalSpec, RunSpec
from bench.storage.files import save
from bench.storage.store import MANIFEST, RunFolder

CLEAN = {  # method -> (clean accuracy, the eps at which half of it is left, in units of the main eps)
    "simclr": (0.97, 0.25),
    "simclr_adv": (0.93, 0.80),
    "simclr_patch_adv": (0.90, 0.70),
    "simclr_free": (0.94, 0.75),
    "emp_ssl": (0.96, 0.30),
    "emp_ssl_adv": (0.92, 0.95),
    "emp_ssl_patch_adv": (0.88, 0.85),
    "emp_ssl_patch_free": (0.89, 0.90),
    "cf_amc_ssl": (0.93, 1.10),
}
METHODS = tuple(CLEAN)
DIGITS = DataInfo(
    label="digits",
    train=1437,
    test=360,
    classes=10,
    image_shape=(1, 8, 8),
    train_sha256="a" * 64,
    test_sha256="b" * 64,
    subset=False,
)
CIFAR = DIGITS.model_copy(
    update={"label": "cifar10[2000/1000]", "train": 2000, "test": 1000, "image_shape": (3, 32, 32), "subset": True}
)
MACHINE = Environment(
    python="3.11.9",
    torch="2.8.0",
    versions={"numpy": "2.2.0", "torchvision": "0.23.0", "pyautoattack": "0.2.1"},
    platform="Linux-6.8-x86_64",
    cpu="AMD EPYC 9654",
    cores=2,
    threads=2,
    device="cpu",
    device_name="AMD EPYC 9654",
    precision="float32",
    commit="0123456789abcdef0123456789abcdef01234567",
    dirty=False,
)


def adversary(method: str) -> str:
    if method in ("simclr", "emp_ssl"):
        return "none"
    return "free" if "free" in method or method == "cf_amc_ssl" else "pgd"


def manifest(
    methods: tuple[str, ...] = METHODS,
    seeds: int = 1,
    data: DataInfo = DIGITS,
    eps: tuple[float, ...] = (0.05, 0.1),
    level: str = "quick",
) -> Manifest:
    """What was asked: ``methods`` x ``seeds``, one minute each; the last eps is the main one."""
    evaluation = EvalSpec(level=level, eps=eps, main_eps=eps[-1], protocols=("linear", "multi_patch", "published_eval"))
    runs = [
        RunSpec(
            method="any",
            data=DataSpec(name=data.label.split("[")[0]),
            seed=seed,
            budget=Budget.parse("1m"),
            eval=evaluation,
        ).model_copy(update={"method": method})  # not checked: the reports have their own defence
        for seed in range(seeds)
        for method in methods
    ]
    return Manifest(
        bench_version="0.1.0",
        command=["bench", "run", "--methods", ",".join(methods), "--budget", "60s", "--eps", "8/255"],
        created="2026-03-04T05:06:07+00:00",
        budget=Budget.parse("1m"),
        runs=runs,
        seeds=list(range(seeds)),
        data=data,
        main_eps=eps[-1],
        environment=MACHINE,
    )


def records(asked: Manifest, diverged: tuple[str, ...] = ("simclr_patch_adv-s0",)) -> list[Record]:
    """What was found: every run finished, but those named in ``diverged``."""
    return [_record(asked, spec, spec.name in diverged) for spec in asked.runs]


def result(protocol: str, attack: str, eps: float, outcomes: str, **others: object) -> EvalResult:
    """One cell, in the image, with a hash that names its attack."""
    values = {"threat_space": "image", "seconds": 1.5, "config_hash": f"{attack}-hash"} | others
    return EvalResult.model_validate(
        {"protocol": protocol, "attack": attack, "eps": eps, "outcomes": outcomes} | values
    )


def audited(protocol: str, results: list[EvalResult], eps: float, verdict: Verdict = "PASS") -> Audit:
    """An audit of one check with this verdict, which broke nothing."""
    both = [r.outcomes for r in results if (r.protocol, r.eps) == (protocol, eps) and r.attack in ("pgd", "autoattack")]
    check = Check(id="S2", verdict=verdict, value=5.0, threshold="at least 2 eps", n=1)
    left = ["".join(pair) for pair in zip(*both, strict=False)] if len(both) == 2 else []
    return Audit(
        protocol=protocol,
        level="core",
        eps=eps,
        checks=[check],
        ranked_correct=left.count("11"),
        audited=len(left),
    )


def probe(protocol: str, *band: tuple[float, int, int]) -> ProbeResult:
    """A probe of lambda .01 with this band of (lambda, correct, total)."""
    return ProbeResult(
        protocol=protocol,
        feature_width=8,
        penalty=0.01,
        gradient_norm=0.0,
        scale=1.0,
        held_out=[],
        train_correct=9,
        train_total=10,
        seconds=1.0,
        band=list(band),
    )


def write(folder: Path, asked: Manifest, found: list[Record]) -> Path:
    """The same on disk, through the store."""
    save(folder / MANIFEST, asked)
    for record in found:
        run = RunFolder(folder, record.spec)
        run.save_record(record)
        if record.train is not None:
            save(run.path / "train.json", record.train)
        for each in record.results:
            run.save_result(each)
        if record.audits:
            run.save_audits(record.audits)
    return folder


@contextmanager
def tables_only() -> Iterator[None]:
    """``build`` within draws no figure and sets no page, which take seconds: for what is about its tables."""
    from reports import html, pdf, plots

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "wanted", lambda *_: [])
        for page in (pdf, html):
            patch.setattr(page, "render", lambda *_: b"")
        yield


def _record(asked: Manifest, spec: RunSpec, diverged: bool) -> Record:
    name, free = spec.method, adversary(spec.method) == "free"
    replays = 3.0 if free else 1.0
    steps = 5.0 if adversary(name) == "pgd" else 0.0
    views = 16.0 if name.startswith(("emp", "cf")) else 2.0
    train = TrainResult(
        status="diverged" if diverged else "finished",
        updates=41 if diverged else 1500 + 7 * len(name),
        epochs=0.4 if diverged else 60 / views,
        train_seconds=3.25 if diverged else 59.5 + 0.03 * (len(name) % 7) + 0.01 * spec.seed,
        compile_seconds=1.5 + 0.1 * views,
        progress=0.05 if diverged else 1.0,
        images_per_second=90000.0 / (views * (1 + steps) * replays),
        forward_per_image=views * (replays + steps),
        backward_input_per_image=views * (steps + (replays if free else 0)),
        backward_weight_per_image=views * replays,
        flops_per_image=1.2e7 * views * (3 * replays + 2 * steps),
        peak_memory_bytes=int(2e8 + 3e7 * views),
        median_update_seconds=0.04,
        last_lr=0.0,
        note="",
    )
    settings = [
        Setting(name="adversary", value=adversary(name), source="text"),
        Setting(name="views", value=int(views), source="text"),
        Setting(name="crop_scale", value=[0.25, 0.25] if "patch" in name else [0.08, 1.0], source="code"),
        Setting(name="learning_rate", value=0.3, source="code"),
        Setting(name="train_eps", value=asked.main_eps, source="the dataset"),
    ]
    results = [] if diverged else _results(asked, spec)
    return Record(
        spec=spec,
        adversary=adversary(name),
        data=asked.data,
        settings=settings,
        environment=asked.environment,
        train=train,
        results=results,
        audits=[audited(p, results, asked.main_eps) for p in ("linear", "multi_patch")] if results else [],
        status=train.status,
        message="the loss was not finite after 41 updates" if diverged else "",
    )


def _results(asked: Manifest, spec: RunSpec) -> list[EvalResult]:
    clean, half = CLEAN.get(spec.method, (0.9, 0.8))
    main, places = asked.main_eps, np.random.default_rng(spec.seed)
    order = places.random(asked.data.test)  # an image stands while its place lies below the accuracy: monotone in eps

    def outcomes(eps: float, images: int, loss: float = 0.0) -> str:
        accuracy = clean * 0.5 ** ((eps / (half * main)) ** 2) - loss
        return "".join("1" if place < accuracy else "0" for place in order[:images])

    found = []
    for protocol, shift, attacked in (("linear", 0.0, 64), ("multi_patch", 0.02, 32)):
        found.append(result(protocol, "none", 0.0, outcomes(0, asked.data.test, shift)))
        found += [result(protocol, "pgd", eps, outcomes(eps, 300, shift)) for eps in spec.eval.eps]
        found.append(result(protocol, "autoattack", main, outcomes(main, attacked, shift + 0.03)))
        curve = [share * main for share in (0.25, 0.75, 1.5, 2.0)]
        found += [result(protocol, "pgd", eps, outcomes(eps, 300, shift), curve=True) for eps in curve]
    found.append(result("published_eval", "none", 0.0, outcomes(0, asked.data.test)))
    return found + [result("published_eval", "pgd", eps, outcomes(eps, 300, -0.01)) for eps in spec.eval.eps]
