"""What the command line and a suite file may say, and the runs that follow from it, checked at the door."""

import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from bench import registry
from bench.names import check_labels, named
from bench.options.threats import Threats, parse_threats
from bench.spec import NAME, AuditLevel, Budget, Data, DataSpec, Level, Precision, UsageError, unknown
from bench.text import read_text

SUITES = Path(__file__).parents[1] / "suites"
MOST_SEEDS = 10_000
RANKED_ATTACKS = ("pgd", "autoattack")
TAKEN = ("all", "audit", "clean", "corruptions", "pgd_only", "transfer", "worst")  # by what stands beside attacks


class Row(Data):
    """One row of a suite: a method under a name of its own, with its settings and its training."""

    method: str
    name: str = Field(default="", pattern=f"^$|{NAME}")  # in every table and folder; the method's if not given
    budget: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    tuned: bool = False  # its settings are those that a search has found (--tuned)

    @property
    def label(self) -> str:
        return self.name or (Path(self.method).stem if self.method.endswith(".py") else self.method)


class Options(Data):
    """What the command line and a suite file may say; both fill the same fields, the command line wins."""

    description: str = ""
    methods: str = "all"
    rows: list[Row] = Field(default_factory=list)  # of a suite, instead of methods; --methods then picks among them
    budget: str | None = None
    total_budget: str | None = None
    data: str = "cifar10"
    data_root: str | None = None
    train_images: int | None = Field(default=None, gt=0)
    test_images: int | None = Field(default=None, gt=0)
    image_size: int | None = Field(default=None, ge=8, le=4096)
    classes: str | None = None
    held_out: bool = False  # test on a fifth of the training images, and leave the test images alone (bench tune)
    seeds: str = "1"
    attacks: str = "pgd,autoattack"
    attack_images: str | None = None  # pgd=100,autoattack=32,autoattack.multi_patch=16 (bench.options.scoring)
    search: Literal["fp32", "tf32"] = "fp32"  # precision of the attacks' own passes
    eps: str | None = None
    threats: str | None = None  # linf:8/255,l2:0.5,corruptions
    protocols: str = "linear,multi_patch,published_eval"
    eval: Level | None = None
    audit: AuditLevel | None = None  # None: core at quick, full above
    curve: Literal["off", "clean", "robust"] | None = None  # None: off at quick, robust above
    encoder: str | None = None
    threads: int | None = Field(default=None, gt=0)
    device: str = "auto"
    gpus_per_run: int = Field(default=1, gt=0)
    precision: Precision | None = None  # None: bf16 on CUDA, fp32 elsewhere
    compile: bool = False
    eval_budget: str | None = None
    tuned: str | None = None  # the folder of a search (bench tune): beside each row, the best settings that it found
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)  # method, attack or "all" -> key -> value

    @property
    def data_spec(self) -> DataSpec:
        """Which images."""
        name, colon, path = self.data.partition(":")
        return DataSpec(
            name=name,
            path=path if colon else None,
            root=self.data_root,
            train_images=self.train_images,
            test_images=self.test_images,
            image_size=self.image_size,
            classes=self.classes,
            held_out=self.held_out,
        )

    def settings_of(self, row: Row) -> dict[str, Any]:
        """What a row sets, then --set on top: of all, of the method, of the row."""
        settings = dict(row.settings)
        for target in dict.fromkeys(("all", Path(row.method).stem, row.label)):
            settings |= self.settings.get(target, {})
        return settings


def parse_seconds(text: str, option: str) -> float:
    """Seconds of a time such as 20m. Raises UsageError for anything else."""
    time = Budget.parse(text)
    if time.unit != "seconds":
        raise UsageError(f"expected {option} in time, such as 20m, got {time}")
    return time.amount


def load_suite(name: str) -> dict[str, Any]:
    """The options in a suite file: a name in bench/suites or a path. Raises UsageError."""
    path = Path(name) if name.endswith(".toml") else SUITES / f"{name}.toml"
    if not path.is_file():
        raise UsageError(
            unknown("suite", name, suites()) if not name.endswith(".toml") else f"no such suite file: {name}"
        )
    options = read_toml(path, "suite")
    if "held_out" in options:  # the test images are what a run is about
        raise UsageError(f"{path}: " + unknown("key", "held_out", Options.model_fields.keys() - {"held_out"}))
    suite = options_of(options, where=str(path))
    if suite.rows:  # what a suite sets for all gives way to its rows; --set comes on top of both
        common = options.pop("settings", {})
        for row, given in zip(suite.rows, options["rows"], strict=True):
            below = {key: value for target in ("all", row.method) for key, value in common.get(target, {}).items()}
            given["settings"] = below | row.settings
        of_rows = {"all", *(row.method for row in suite.rows)}
        options["settings"] = {target: changed for target, changed in common.items() if target not in of_rows}
    return options


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """What a TOML file of the user's holds; ``what`` it is, for the message. Raises UsageError."""
    text = read_text(path, what)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # of TOML, of a number with thousands of digits
        raise UsageError(f"the {what} {path} is not TOML: {error}") from None


Model = TypeVar("Model", bound=Data)


def checked(model: type[Model], values: dict[str, Any], where: str) -> Model:
    """The model from plain values; UsageError with the nearest known key for one that does not exist."""
    for key in values:
        if key not in model.model_fields:
            raise UsageError(f"{where}: " + unknown("key", key, model.model_fields))
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{where}: {name}: {first['msg'].lower()}, got {repr(first['input'])[:200]}") from None


def options_of(values: dict[str, Any], where: str = "the command line") -> Options:
    """Options from plain values. Raises UsageError."""
    return checked(Options, values, where)


def suites() -> list[str]:
    """Names of the suites that come with the project."""
    return sorted(file.stem for file in SUITES.glob("*.toml"))


# ---------------------------------------------------------------- options -> runs


def parse_settings(pairs: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """``method.key=value`` (or ``attack.``, ``all.``) of --set as a nested dictionary. Raises UsageError."""
    settings: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        target, equals, value = pair.partition("=")
        method, dot, key = target.strip().rpartition(".")
        if not (equals and dot and method and key and value.strip()):
            raise UsageError(f"expected --set method.key=value or attack.key=value, got {pair!r}")
        settings.setdefault(method, {})[key] = value.strip()
    return settings


def parse_seeds(text: str) -> list[int]:
    """``3`` means seeds 0, 1, 2; a list has a comma: ``0,7`` or ``7,``. Raises UsageError."""
    try:
        listed = [int(part) for part in text.split(",") if part.strip()]
        seeds = listed if "," in text else list(range(min(listed[0] if listed else 0, MOST_SEEDS + 1)))
    except ValueError:
        raise UsageError(f"expected seeds such as 3 (that many) or 0,7 (these), got {text!r}") from None
    if not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise UsageError(f"expected at least one seed, none below 0 and none twice, got {text!r}")
    if len(seeds) > MOST_SEEDS or max(seeds) >= 10**10:
        raise UsageError(f"expected at most {MOST_SEEDS} seeds, each below 10**10, got {text[:80]!r}")
    return seeds


def parse_names(kind: registry.Kind, text: str) -> list[str]:
    """Known names of a comma-separated list; a path to a .py file may stand for a name. Raises UsageError."""
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    groups = registry.method_groups() if kind == "method" else {}
    names: list[str] = []
    for name in wanted:
        names += groups.get(name, (name,))
    if not names:
        raise UsageError(f"expected at least one {kind}, got {text!r}; known: {', '.join(registry.names(kind))}")
    for name in names:
        registry.source(kind, named(name)[1] if kind == "method" else name)  # raises for an unknown one
    if len(set(names)) != len(names):
        raise UsageError(f"expected each {kind} once, got {text!r}")
    return names


def asked_attacks(options: Options) -> dict[str, str]:
    """Name -> that in attacks/, or the absolute path of a .py file, of the attacks of --attacks. Raises UsageError.

    After them their forms in the other norms of --threats: of ``pgd`` for l2 that is ``pgd_l2``.
    """
    attacks: dict[str, str] = {}
    for given in parse_names("attack", options.attacks):
        file = given.endswith(".py")
        name = Path(given).stem if file else given
        if name in attacks:
            raise UsageError(f"expected attacks of different names, got {name} twice; rename a file")
        if file and name in TAKEN:
            raise UsageError(f"expected an attack file of another name, got {given}: {name} means something in tables")
        attacks[name] = str(Path(given).resolve()) if file else given
    forms = [f"{name}_{norm}" for norm in asked_threats(options).brought for name in attacks]
    return attacks | {name: name for name in forms if name in registry.names("attack")}


def asked_threats(options: Options) -> Threats:
    """The threats of --threats and --eps. Raises UsageError."""
    return parse_threats(options.eps, options.threats)


def check_targets(options: Options, rows: list[Row], protocols: Collection[str]) -> None:
    """Raises UsageError where --set names nothing that is run, or two things, or an attack that ranks."""
    targets = {Path(row.method).stem for row in rows} | {row.label for row in rows}
    attacks = asked_attacks(options)
    for target in options.settings:
        meanings = {"a method": targets, "an attack": attacks, "a protocol": protocols}
        meant_by = [what for what, names in meanings.items() if target in names]
        if len(meant_by) > 1:
            raise UsageError(f"--set {target} means {' and '.join(meant_by)}; give one of the two another name")
        if target in RANKED_ATTACKS and target in attacks:
            raise UsageError(
                f"--set {target}: the settings of {target} are the same for everybody, since it ranks; copy "
                f"attacks/{target}.py to a file of another name, and give its path to --attacks"
            )
        if target != "all" and not meant_by:
            known = sorted({*targets, *attacks, *protocols})
            raise UsageError("--set: " + unknown("method, attack or protocol", target, known))
        meant = {Path(row.method).resolve(): row.label for row in rows if Path(row.method).stem == target}
        if len(meant) > 1:
            labels = " and ".join(meant.values())
            raise UsageError(f"--set {target} means the files of {labels}; name each of them with --methods NAME=PATH")


def chosen_rows(options: Options) -> list[Row]:
    """The rows of the suite that --methods names (all, a row or a method), or a row for each method. UsageError."""
    if not options.rows:
        rows = [Row(method=method, name=name) for name, method in map(named, parse_names("method", options.methods))]
        check_labels(((row.label, row.method) for row in rows), suite=False)
        return rows
    labels = [row.label for row in options.rows]
    check_labels(((row.label, row.method) for row in options.rows), suite=True)
    for row in options.rows:
        registry.source("method", row.method)
    wanted = [part.strip() for part in options.methods.split(",") if part.strip()]
    known = [*dict.fromkeys(labels + [row.method for row in options.rows]), "all"]
    for name in wanted:
        if name not in known:
            raise UsageError(unknown("row", name, known))
    rows = [row for row in options.rows if {"all", row.label, row.method} & set(wanted)]
    if not rows:
        raise UsageError(f"expected at least one row, got {options.methods!r}; known: {', '.join(known)}")
    return rows


def parse_budgets(text: str) -> list[Budget]:
    """One budget, or several of one unit with commas, the smallest first: ``2m,5m,2h``. Raises UsageError."""
    budgets = sorted((Budget.parse(part) for part in text.split(",")), key=lambda budget: budget.amount)
    if len({budget.unit for budget in budgets}) > 1:
        raise UsageError(f"expected budgets of one kind (time, epochs or updates), got {text!r}")
    if len(set(budgets)) != len(budgets):
        raise UsageError(f"expected each budget once, got {text!r}")
    return budgets


def row_cells(
    options: Options, rows: list[Row], total: Budget | None, seeds: int
) -> list[tuple[Row, Budget, str | None]]:
    """(row, budget, label) of every run of one seed. Each of several budgets has its own run. UsageError."""
    several = parse_budgets(options.budget) if options.budget else []
    if len(several) < 2:
        budgets = row_budgets(options, rows, total, seeds)
        return [(row, budget, row.name or None) for row, budget in zip(rows, budgets, strict=True)]
    if total is not None or any(row.budget for row in rows):
        given = "a total budget" if total is not None else "rows that state their own"
        raise UsageError(f"expected several budgets ({options.budget}) alone, got {given} beside them")
    cells = [(row, budget, f"{row.label}-{budget}") for budget in several for row in rows]
    labels = [label for _, _, label in cells]
    for label in labels:
        if labels.count(label) > 1 or not re.fullmatch(NAME, label):
            raise UsageError(f"expected runs of different names of at most 68 letters, got {label!r}; rename a row")
    return list(cells)


def row_budgets(options: Options, rows: list[Row], total: Budget | None, seeds: int) -> list[Budget]:
    """The training of each row: its own, else --budget, else an even share of --total-budget. Raises UsageError.

    Where every row states its own, the total is a cap, which the plan checks.
    """
    if all(row.budget for row in rows):
        if total and total.unit != "seconds":
            raise UsageError(f"expected a total budget in time, as the rows state their own training, got {total}")
        return [Budget.parse(row.budget or "") for row in rows]
    if (options.budget is None) == (total is None):
        given = "both" if options.budget else "none"
        raise UsageError(f"expected one budget, --budget (of each run) or --total-budget (of all), got {given}")
    common = Budget.parse(options.budget) if options.budget else None
    if common is None:
        assert total is not None
        common = share(total, len(rows) * seeds)
    return [Budget.parse(row.budget) if row.budget else common for row in rows]


def share(total: Budget, runs: int) -> Budget:
    """An even share of a budget; updates are rounded down. Raises UsageError where less than one update is left."""
    amount = total.amount / runs
    if total.unit == "updates":
        amount //= 1
    if amount == 0:
        raise UsageError(f"expected a total budget of at least one update for each of {runs} runs, got {total}")
    return Budget(amount=amount, unit=total.unit)
