"""The baseline of the regression gate: what a run measured, a value for each seed, as text for a diff."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from bench.record import EvalResult, Manifest, Record
from bench.spec import Data, RunSpec, Sha256, UsageError, format_radius
from bench.storage.files import LARGEST_JSON
from bench.text import read_text

BASELINES = Path(__file__).parent / "baselines"
Metric = Literal[
    "status",
    "clean accuracy",
    "robust accuracy",
    "accuracy on the curve",
    "probe accuracy",
    "probe gradient norm",
    "audit",
    "passes per image",
    "peak memory",
]
ACCURACIES: tuple[Metric, ...] = ("clean accuracy", "robust accuracy", "probe accuracy")  # whose means are tested (G2)
COUNTS: tuple[Metric, ...] = (*ACCURACIES, "accuracy on the curve")


class Tolerances(Data):
    """How much worse a metric may be before it is a loss, whatever a test says."""

    clean_points: float = Field(default=1.0, ge=0)
    robust_points: float = Field(default=2.0, ge=0)
    probe_points: float = Field(default=1.0, ge=0)
    gradient_norm: float = Field(default=1e-6, gt=0)  # of a fitted probe: the largest (protocol 1.2)
    passes: float = Field(default=0.001, ge=0)  # relative, as the next two
    memory: float = Field(default=0.2, ge=0)
    speed: float = Field(default=0.5, ge=0)


class Series(Data):
    """One metric of one method: a value for each seed, None where it was not measured. Counts have a ``total``."""

    method: str
    where: str = ""  # protocol, attack and eps
    metric: Metric
    total: int | None = Field(default=None, ge=0)
    values: list[int | float | str | None]

    @property
    def cell(self) -> str:
        """The cell in words, as ``cf_amc_ssl, linear, pgd at eps 0.1``."""
        return f"{self.method}, {self.where}" if self.where else self.method

    @property
    def key(self) -> tuple[str, str, str]:
        """What finds the same thing in another run."""
        return self.method, self.where, self.metric

    @property
    def numbers(self) -> list[float]:
        """The measured values that are numbers."""
        return [float(value) for value in self.values if isinstance(value, int | float)]


class Reading(Data):
    """What a run measured, and what it depends on: exact equality is promised only where all of that is equal."""

    dataset: str
    test_sha256: Sha256
    budget: str
    level: str
    threads: int
    platform: str
    versions: dict[str, str]
    commit: str | None
    seeds: list[int]
    series: list[Series]

    @classmethod
    def of(cls, manifest: Manifest, records: Sequence[Record]) -> "Reading":
        """All metrics of a run folder, methods in the manifest's order."""
        by_name = {record.spec.name: record for record in records}
        first = {spec.row: spec for spec in reversed(manifest.runs)}
        series: list[Series] = []
        for method in dict.fromkeys(spec.row for spec in manifest.runs):
            wanted = [first[method].model_copy(update={"seed": seed}).name for seed in manifest.seeds]
            series += series_of(method, [by_name.get(name) for name in wanted])
        machine = manifest.environment
        return cls(
            dataset=manifest.data.label,
            test_sha256=manifest.data.test_sha256,
            budget=str(manifest.budget),
            level=manifest.runs[0].eval.level,
            threads=manifest.runs[0].threads or machine.threads,
            platform=platform(manifest),
            versions={"torch": machine.torch} | machine.versions | {"python": machine.python},
            commit=machine.commit and machine.commit + ("+" if machine.dirty else ""),
            seeds=manifest.seeds,
            series=series,
        )

    def of_seeds(self, seeds: Sequence[int]) -> dict[tuple[str, str, str], Series]:
        """The series with the values of these seeds alone, in this order; a seed that is missing is left out."""
        places = [self.seeds.index(seed) for seed in seeds if seed in self.seeds]
        return {s.key: s.model_copy(update={"values": [s.values[place] for place in places]}) for s in self.series}


def series_of(method: str, records: Sequence[Record | None]) -> list[Series]:
    """All series of one method from its runs, one for each seed; None for a run that is missing."""
    by_key: dict[tuple[str, str, str], Series] = {}

    def put(place: int, value: int | float | str, metric: Metric, where: str = "", total: int | None = None) -> None:
        fresh = Series(method=method, where=where, metric=metric, total=total, values=[None] * len(records))
        series = by_key.setdefault(fresh.key, fresh)
        if series.total != total:
            raise UsageError(f"nothing to compare: {series.cell}, {metric}: {series.total} images and {total}")
        series.values[place] = value

    for place, record in enumerate(records):
        put(place, record.status if record else "missing", "status")
        if record is None:
            continue
        for result in (result for result in record.results if not result.apart):
            put(place, result.correct, metric_of(result), where(result), result.total)
        for probe in record.probes:
            for penalty, correct, total in probe.held_out:
                if penalty == probe.penalty:
                    put(place, correct, "probe accuracy", f"{probe.protocol}, held out", total)
                    put(place, probe.gradient_norm, "probe gradient norm", probe.protocol)
        for audit in record.audits:
            put(place, audit.verdict, "audit", audit.protocol)
        if record.train is not None and record.train.status == "finished":
            cost = record.train
            passes = cost.forward_per_image + cost.backward_input_per_image + cost.backward_weight_per_image
            put(place, round(passes, 6), "passes per image")
            put(place, cost.peak_memory_bytes, "peak memory")
    return list(by_key.values())


def metric_of(result: EvalResult) -> Metric:
    """Which accuracy a result is."""
    if result.curve:
        return "accuracy on the curve"
    return "clean accuracy" if result.attack == "none" else "robust accuracy"


def where(result: EvalResult) -> str:
    """Protocol, attack and eps in words."""
    attack = "clean" if result.attack == "none" else f"{result.attack} at eps {format_radius(result.norm, result.eps)}"
    return f"{result.protocol}, {attack}"


def platform(manifest: Manifest) -> str:
    """System, processor and device, as in ``Linux x86_64 AMD EPYC, cpu``: exact counts hold for one kind of each."""
    machine = manifest.environment
    system, _, rest = machine.platform.partition("-")
    families = [family for family in ("x86_64", "aarch64", "arm64", "AMD64") if family in rest]
    device = "cpu" if machine.device == "cpu" else machine.device_name
    return f"{system} {families[0] if families else rest} {machine.cpu}, {device}"


# ---------------------------------------------------------------- stored weights


class Fixed(Data):
    """One method's stored weights, and what the attack left of them on fixed images (G1)."""

    spec: RunSpec  # the run that they come from
    weights: str = Field(pattern=r"^[A-Za-z0-9._-]+\.safetensors$")  # a file beside the baseline: encoder and probe
    sha256: Sha256
    protocol: str
    eps: float
    seed: int  # of the attack
    images_sha256: Sha256
    clean: str = Field(default="", pattern="^[01]*$")  # an outcome for each image, '1' where it stands
    attacked: str = Field(default="", pattern="^[01]*$")
    speed: float | None = Field(default=None, gt=0)  # seconds of an update over those of the calibration loop
    error: str = ""  # why there are no outcomes

    @property
    def cell(self) -> str:
        """The cell in words."""
        return f"{self.spec.row}, stored weights, {self.protocol}"


class FixedRun(Data):
    """fixed.json: the stored weights of all methods under one seed of the attack."""

    fixed: list[Fixed]
    code: str = ""  # hash of the code that scored them


# ---------------------------------------------------------------- the file


class Baseline(Reading):
    """A reading to compare with: why and when it was made, the tolerances, and the stored weights."""

    reason: str = Field(min_length=1)
    updated: str  # the day, for people
    tolerances: Tolerances = Tolerances()
    fixed: list[Fixed] = Field(default_factory=list)

    @classmethod
    def read(cls, file: Path) -> "Baseline":
        """A stored baseline. Raises UsageError if it is missing, damaged or empty."""
        if not file.exists():
            raise UsageError(f"nothing to compare with: no baseline {file}; see bench baseline update")
        try:
            baseline = cls.model_validate_json(read_text(file, "baseline", LARGEST_JSON))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the file"
            raise UsageError(f"{file} is not a baseline: {place}: {first['msg']}") from None
        if any(names_code(fixed.spec) for fixed in baseline.fixed):
            raise UsageError(
                f"{file} is refused: it names the file of a method or an encoder, which is code; stored weights need "
                "none"
            )
        lengths = {len(line.values) for line in baseline.series}
        if not any(line.metric in COUNTS and line.numbers for line in baseline.series):
            raise UsageError(f"nothing to compare with: the baseline {file} is empty")
        if lengths != {len(baseline.seeds)}:
            raise UsageError(f"{file} is not a baseline: expected {len(baseline.seeds)} values in each series")
        for stored in baseline.series:
            words = stored.metric in ("status", "audit")
            fits = all(isinstance(value, str) == words for value in stored.values if value is not None)
            if not fits or not (words or stored.numbers) or (stored.metric in COUNTS) != bool(stored.total):
                raise UsageError(f"{file} is not a baseline: {stored.cell}, {stored.metric}: values of another kind")
        return baseline

    def text(self) -> str:
        """As JSON, a series a line."""
        head = self.model_dump(mode="json", exclude={"series", "fixed"})
        lists = {
            name: ",\n  ".join(json.dumps(entry.model_dump(mode="json")) for entry in part)
            for name, part in (("series", self.series), ("fixed", self.fixed))
        }
        parts = [f' "{name}": [\n  {lines}\n ]' if lines else f' "{name}": []' for name, lines in lists.items()]
        return json.dumps(head, indent=1).removesuffix("\n}") + ",\n" + ",\n".join(parts) + "\n}\n"


def names_code(spec: RunSpec) -> bool:
    """Whether a run is made with a file of somebody's own, which is code."""
    return bool(spec.method_path or spec.encoder_path) or (spec.encoder or "").endswith(".py")


def default_baseline(suite: str) -> Path:
    """Where the baseline of a suite that comes with the project lies."""
    return BASELINES / f"{Path(suite).stem}.json"
