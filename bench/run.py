"""The conductor: options -> plan -> train and evaluate each run in a process of its own -> tables and figures.

It has no logic of its own: it asks the registry for names, the store for what is there, the engine to do the rest.
"""

import hashlib
import tomllib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from bench import __version__, registry
from bench.engine import run_child
from bench.plan import Estimate, Measured, estimate
from bench.progress import Display
from bench.spec import (
    Budget,
    Data,
    DataInfo,
    DataSpec,
    EvalSpec,
    Level,
    Manifest,
    RunSpec,
    UsageError,
    parse_eps,
    unknown,
)
from bench.store import MANIFEST, RunFolder, load_manifest, save

SUITES = Path(__file__).parent / "suites"
PROTOCOLS = "linear,multi_patch,published_eval"


class Options(Data):
    """What the command line and a suite file may say; both fill the same fields, the command line wins."""

    description: str = ""
    methods: str = "all"
    budget: str | None = None
    total_budget: str | None = None
    data: str = "cifar10"
    data_root: str | None = None
    train_images: int | None = Field(default=None, gt=0)
    test_images: int | None = Field(default=None, gt=0)
    seeds: str = "1"
    attacks: str = "pgd,autoattack"
    eps: str | None = None
    protocols: str = PROTOCOLS
    eval: Level | None = None
    encoder: str | None = None
    threads: int | None = Field(default=None, gt=0)
    device: str = "auto"
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)  # method (or "all") -> key -> value


def load_suite(name: str) -> dict[str, Any]:
    """The options in a suite file: a name in bench/suites or a path. Raises UsageError."""
    path = Path(name) if name.endswith(".toml") else SUITES / f"{name}.toml"
    if not path.is_file():
        raise UsageError(
            unknown("suite", name, suites()) if not name.endswith(".toml") else f"no such suite file: {name}"
        )
    try:
        options: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the suite {path} is not TOML: {error}") from None
    options_of(options, where=str(path))
    return options


def options_of(values: dict[str, Any], where: str = "the command line") -> Options:
    """Options from plain values; UsageError with the nearest known key for one that does not exist."""
    for key in values:
        if key not in Options.model_fields:
            raise UsageError(f"{where}: " + unknown("key", key, Options.model_fields))
    try:
        return Options.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{where}: {name}: {first['msg'].lower()}, got {first['input']!r}") from None


def suites() -> list[str]:
    """Names of the suites that come with the project."""
    return sorted(file.stem for file in SUITES.glob("*.toml"))


# ---------------------------------------------------------------- options -> runs


def parse_settings(pairs: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """``method.key=value`` (or ``all.key=value``) of --set as a nested dictionary. Raises UsageError."""
    settings: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        target, equals, value = pair.partition("=")
        method, dot, key = target.strip().rpartition(".")
        if not (equals and dot and method and key and value.strip()):
            raise UsageError(f"expected --set method.key=value, got {pair!r}")
        settings.setdefault(method, {})[key] = value.strip()
    return settings


def parse_seeds(text: str) -> list[int]:
    """``3`` means seeds 0, 1, 2; a list has a comma: ``0,7`` or ``7,``. Raises UsageError."""
    try:
        seeds = [int(part) for part in text.split(",") if part.strip()] if "," in text else list(range(int(text)))
    except ValueError:
        raise UsageError(f"expected seeds such as 3 (that many) or 0,7 (these), got {text!r}") from None
    if not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise UsageError(f"expected at least one seed, none below 0 and none twice, got {text!r}")
    return seeds


def parse_names(kind: registry.Kind, text: str) -> list[str]:
    """Known names of a comma-separated list; a path to a .py file may stand for a name. Raises UsageError."""
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    groups: dict[str, tuple[str, ...]] = {}
    if kind == "method":
        import methods

        groups = {"all": tuple(registry.names("method")), **methods.GROUPS}
    found: list[str] = []
    for name in wanted:
        found += groups.get(name, (name,))
    if not found:
        raise UsageError(f"expected at least one {kind}, got {text!r}; known: {', '.join(registry.names(kind))}")
    for name in found:
        registry.load(kind, name)  # raises for an unknown one
    if len(set(found)) != len(found):
        raise UsageError(f"expected each {kind} once, got {text!r}")
    return found


def evaluation(options: Options, dataset: Any) -> EvalSpec:
    """How the encoders of this run are scored: the level's depth, the dataset's eps and crops. Raises UsageError."""
    from bench.evaluate import check_protocols

    level: Level = options.eval or dataset.level
    eps: tuple[float, ...] = dataset.eps
    if options.eps:
        eps = tuple(parse_eps(part) for part in options.eps.split(",") if part.strip())
    if not eps or min(eps) == 0:
        raise UsageError(f"expected eps above 0, got {options.eps!r}; clean accuracy is always measured")
    protocols = tuple(dict.fromkeys(part.strip() for part in options.protocols.split(",") if part.strip()))
    if not protocols:
        raise UsageError(f"expected at least one protocol, got {options.protocols!r}; known: {PROTOCOLS}")
    if level == "full" and "linear" in protocols and "linear_backbone" not in protocols:
        protocols += ("linear_backbone",)
    check_protocols(protocols)
    main = [each for each in eps if abs(each - dataset.main_eps) < 1e-9]
    levels: dict[Level, dict[str, Any]] = {
        "quick": {"restarts": 1, "pgd_images": 300}
        | {"autoattack_images": {"linear": 64, "linear_backbone": 64, "multi_patch": 32}},
        "standard": {"restarts": 5, "pgd_images": None, "curve_images": {}, "band_images": 1000}
        | {"autoattack_images": {"linear": 1000, "linear_backbone": 1000, "multi_patch": 1000}},
        "full": {"restarts": 5, "pgd_images": None, "curve_images": {}, "band_images": 1000}
        | {"autoattack_images": {}},
    }
    return EvalSpec(
        level=level,
        attacks=tuple(parse_names("attack", options.attacks)),
        eps=tuple(sorted(set(eps))),
        main_eps=main[0] if main else max(eps),
        protocols=protocols,
        crops=dataset.crops,
        **levels[level],
    )


def resolve(options: Options) -> tuple[list[RunSpec], Budget, Budget | None, DataInfo]:
    """All runs of these options, checked at the door: names, settings, budget, device and data. Raises UsageError."""
    from bench import device as devices
    from bench.data import data_info, load_data
    from bench.encoder import BACKBONES
    from bench.train import Course
    from methods.common.base import resolve as resolve_settings

    methods = parse_names("method", options.methods)
    seeds = parse_seeds(options.seeds)
    if (options.budget is None) == (options.total_budget is None):
        given = "both" if options.budget else "none"
        raise UsageError(f"expected one budget, --budget (of each run) or --total-budget (of all), got {given}")
    total = Budget.parse(options.total_budget) if options.total_budget else None
    if options.budget:
        budget = Budget.parse(options.budget)
    else:
        assert total is not None
        budget = share(total, len(methods) * len(seeds))
    device = devices.resolve(options.device)
    name, colon, path = options.data.partition(":")
    dataset = registry.load("dataset", name).Dataset()
    data = DataSpec(
        name=name,
        path=path if colon else None,
        root=options.data_root,
        train_images=options.train_images,
        test_images=options.test_images,
    )
    if options.encoder is not None and options.encoder not in BACKBONES:
        raise UsageError(unknown("encoder", options.encoder, BACKBONES))
    scoring = evaluation(options, dataset)
    for target in options.settings:
        if target != "all" and target not in {Path(method).stem for method in methods}:
            raise UsageError("--set: " + unknown("method", target, [Path(method).stem for method in methods]))
    train_set, test_set = load_data(dataset, data)
    specs: list[RunSpec] = []
    for turn, seed in enumerate(seeds):
        for method in methods[turn % len(methods) :] + methods[: turn % len(methods)]:  # interleaved over the seeds
            short = Path(method).stem if method.endswith(".py") else method
            spec = RunSpec(
                method=short,
                method_path=str(Path(method).resolve()) if method.endswith(".py") else None,
                settings=options.settings.get("all", {}) | options.settings.get(short, {}),
                data=data,
                seed=seed,
                budget=budget,
                device=str(device),
                threads=options.threads,
                encoder=options.encoder,
                eval=scoring,
            )
            specs.append(spec)
            if seed == seeds[0]:
                config, _ = resolve_settings(
                    registry.load("method", method).Config, name, dataset.OVERRIDES, spec.settings
                )
                Course(len(train_set), config.batch, config.updates_per_batch)
    return specs, budget, total, data_info(train_set, test_set)


def share(total: Budget, runs: int) -> Budget:
    """An even share of a budget; updates are rounded down. Raises UsageError where less than one update is left."""
    amount = total.amount / runs
    if total.unit == "updates":
        amount //= 1
    if amount == 0:
        raise UsageError(f"expected a total budget of at least one update for each of {runs} runs, got {total}")
    return Budget(amount=amount, unit=total.unit)


def default_out(options: Options, specs: list[RunSpec]) -> Path:
    """``runs/<data>-<budget>-<hash of everything>``: the same command finds its folder again."""
    text = "".join(spec.model_dump_json() for spec in specs)
    name = options.data.partition(":")[0]
    return Path("runs") / f"{name}-{specs[0].budget}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


# ---------------------------------------------------------------- the run


def open_folder(out: Path, manifest: Manifest) -> Manifest:
    """The manifest of the folder: the stored one if it asks for the same runs, else the new one, now stored.

    Raises UsageError if the folder holds another run's settings or other files, or cannot be written.
    """
    if (out / MANIFEST).exists():
        stored = load_manifest(out)
        if stored.runs != manifest.runs or stored.budget != manifest.budget:
            raise UsageError(
                f"{out} holds a run with other settings ({difference(stored, manifest)}); choose another --out"
            )
        if (stored.data.train_sha256, stored.data.test_sha256) != (
            manifest.data.train_sha256,
            manifest.data.test_sha256,
        ):
            raise UsageError(f"{out} was made with other images of {stored.data.label}; choose another --out")
        return stored
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"expected a new or empty folder, or one of a run, got {out}; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        save(out / MANIFEST, manifest)
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror}; choose another --out") from None
    return manifest


def difference(stored: Manifest, new: Manifest) -> str:
    """The first thing in which two manifests differ, in words."""
    names = ([run.name for run in stored.runs], [run.name for run in new.runs])
    if names[0] != names[1]:
        return f"runs {', '.join(names[0])}"
    for old, now in zip(stored.runs, new.runs, strict=True):
        for key in RunSpec.model_fields:
            if getattr(old, key) != getattr(now, key):
                return f"{key} of {old.name}: {getattr(old, key)}"
    return f"budget {stored.budget}"


def measure_plan(specs: list[RunSpec], log: Path) -> list[Estimate]:
    """What each run will take, from a few steps of every method, measured in one fresh process. Raises UsageError."""
    first = {spec.method: spec for spec in reversed(specs)}
    measured: dict[str, Measured] = {}
    messages: list[str] = []

    def listen(event: dict[str, Any]) -> None:
        if event.pop("event") == "measured":
            measured[event["method"]] = Measured.model_validate(event)
        elif "message" in event:
            messages.append(event["message"])

    task = {"task": "measure", "specs": [spec.model_dump(mode="json") for spec in first.values()]}
    code = run_child(task, listen, log)
    if code:
        raise UsageError(f"the plan could not be measured: {messages[-1] if messages else f'see {log}'}")
    return [estimate(spec, measured[spec.method]) for spec in specs]


def run_all(out: Path, specs: list[RunSpec], display: Display, estimates: list[Estimate] | None) -> list[str]:
    """Every run that is not finished, one after the other; the names of those that did not finish.

    ``diverged`` and ``oom`` are results and stay; ``failed`` is tried again by the same command.
    """
    display.begin(specs, estimates)
    for spec in specs:
        folder = RunFolder(out, spec)
        record = folder.record()
        if record.status in ("finished", "diverged", "oom"):
            display.skipped(spec, record.status)
            continue
        display.started(spec)
        messages: list[str] = []

        def listen(event: dict[str, Any], spec: RunSpec = spec, messages: list[str] = messages) -> None:
            if event.get("event") == "error":
                messages.append(event["message"])
            display.event(spec, event)

        log = folder.path / "log.txt"
        code = run_child({"task": "run", "out": str(out), "spec": spec.model_dump(mode="json")}, listen, log)
        record = folder.record()
        if code or record.status == "pending":
            message = messages[-1] if messages else f"the process ended with code {code}; see {log}"
            folder.save_record(record.model_copy(update={"status": "failed", "message": message}))
        record = folder.record()
        display.ended(spec, record.status, record.message)
    return [spec.name for spec in specs if RunFolder(out, spec).record().status != "finished"]


def make_manifest(
    options: Options, specs: list[RunSpec], budget: Budget, total: Budget | None, data: DataInfo, command: list[str]
) -> Manifest:
    """What is asked for and where it runs."""
    import datetime

    from bench.repro import environment

    return Manifest(
        bench_version=__version__,
        command=command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        budget=budget,
        total_budget=total,
        runs=specs,
        seeds=parse_seeds(options.seeds),
        data=data,
        dataset_source=registry.describe("dataset", specs[0].data.name),
        main_eps=specs[0].eval.main_eps,
        environment=environment(specs[0].device, "fp32"),
    )
