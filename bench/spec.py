"""Every record that crosses a border, as pure data: what is asked for (RunSpec) and what is found (Record).

Accuracies and eps are fractions in [0, 1]; times are seconds; a count is two integers, correct and total.
"""

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from bench.radius import Norm as Norm
from bench.radius import format_eps as format_eps
from bench.radius import format_radius as format_radius
from bench.radius import parse_eps as parse_eps
from bench.shown import Shown
from bench.usage import UsageError as UsageError
from bench.usage import unknown as unknown

Status = Literal["finished", "diverged", "oom", "preempted", "failed"]
Level = Literal["quick", "standard", "full"]
Precision = Literal["fp32", "bf16"]
AuditLevel = Literal["off", "core", "full"]
Verdict = Literal["PASS", "WARN", "FAIL", "N/A", "NOT_RUN", "not in this level"]
NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,67}$"  # of what becomes the name of a file
Name = Annotated[str, Field(pattern=NAME)]
Sha256 = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]


class Data(BaseModel):
    """Base of all records: immutable, unknown keys refused, no NaN or infinity in JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)
    unwritten: ClassVar[tuple[str, ...]] = ()  # left out where they are the default: a hash stays what it was

    @model_serializer(mode="wrap")
    def _as_before(self, handler: Any) -> dict[str, Any]:
        usual = {name for name in self.unwritten if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in handler(self).items() if name not in usual}


class Budget(Data):
    """How much training each run gets, in exactly one unit.

    >>> str(Budget.parse("2h")), Budget.parse("2h").amount
    ('2h', 7200.0)
    """

    amount: float = Field(gt=0)
    unit: Literal["seconds", "epochs", "updates"]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Budget from ``90s``, ``30m``, ``2h``, ``20ep`` (epochs) or ``5000up`` (updates). Raises UsageError."""
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*)\s*", text)
        units = {"s": 1.0, "m": 60.0, "h": 3600.0, "ep": None, "up": None}
        if match is None or match[2] not in units:
            raise UsageError(f"expected a budget such as 90s, 30m, 2h, 20ep (epochs) or 5000up (updates), got {text!r}")
        number, seconds = float(match[1]), units[match[2]]
        if number <= 0:
            raise UsageError(f"expected a budget above 0, got {text!r}")
        if seconds is not None:
            return cls(amount=number * seconds, unit="seconds")
        if match[2] == "up" and number != int(number):
            raise UsageError(f"expected a whole number of updates, got {text!r}")
        return cls(amount=number, unit="epochs" if match[2] == "ep" else "updates")

    def __str__(self) -> str:
        if self.unit != "seconds":
            return f"{self.amount:.12g}{'ep' if self.unit == 'epochs' else 'up'}"
        size, letter = next((s, u) for s, u in ((3600, "h"), (60, "m"), (1, "s")) if self.amount % s == 0 or s == 1)
        return f"{self.amount / size:.12g}{letter}"


class ThreatModel(Data):
    """What the adversary may do: a ball of radius eps around the picture (``image``) or around each crop (``crop``).

    eps is a fraction of the pixel range: in l-inf of every pixel, in l2 of the length of the whole perturbation.
    """

    eps: float = Field(ge=0)
    norm: Norm = "linf"
    space: Literal["image", "crop"] = "image"

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if self.norm == "linf" and self.eps > 1:
            raise ValueError(f"expected eps of l-inf in [0, 1], got {self.eps}")
        return self

    @property
    def label(self) -> str:
        """The radius for people: ``8/255``, or ``l2 0.5``."""
        return format_radius(self.norm, self.eps)


class DataSpec(Data):
    """Which images: a name in bench/datasets, a folder where the name needs one, and how many (None: all)."""

    name: str
    path: str | None = None
    root: str | None = None
    train_images: int | None = Field(default=None, gt=0)
    test_images: int | None = Field(default=None, gt=0)
    image_size: int | None = Field(default=None, ge=8, le=4096)  # that encoded images are resized to; None: theirs
    classes: str | None = None  # a file that lists them


class EvalSpec(Data):
    """How an encoder is scored (protocol of the project, sections 1.1 to 1.6)."""

    unwritten = ("attack_paths", "attack_norms", "attack_settings", "eps_l2", "own_protocols")
    level: Level = "quick"
    attacks: tuple[Name, ...] = ("pgd", "autoattack")
    attack_paths: dict[Name, str] = {}  # of .py files of the user's own
    attack_norms: dict[Name, Norm] = {}  # of those that are not l-inf
    attack_settings: dict[Name, dict[str, Any]] = {}  # --set
    eps: tuple[float, ...] = (0.05, 0.1)  # of attacks in l-inf
    eps_l2: tuple[float, ...] = ()  # of attacks in l2
    main_eps: float = 0.1
    protocols: tuple[Name, ...] = ("linear", "multi_patch")
    crops: int = Field(default=16, gt=0)  # n of multi_patch
    crop_seed: int = 0
    restarts: int = Field(default=1, gt=0)  # of PGD
    pgd_images: int | None = 300  # None: the whole test set
    autoattack_images: dict[str, int | None] = {"linear": 64, "linear_backbone": 64, "multi_patch": 32}
    autoattack_batch: int = Field(default=500, gt=0)  # part of the result: its draws depend on the place in the batch
    chunk: int = Field(default=512, gt=0)  # encoder passes at once; PGD's draws are made chunk by chunk
    band_images: int = Field(default=100, gt=0)  # for the probe band
    curve_images: dict[str, int] = {"multi_patch": 100}  # of eps that are drawn for the curve only; 300 where not named
    curve: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # times the main eps
    over_time: Literal["off", "clean", "robust"] = "off"  # of the snapshots of a training (bench.evaluation.curve)
    search: Literal["fp32", "tf32"] = "fp32"  # precision of an attack's own passes; float32 decides what it found
    audit: AuditLevel = "core"
    budget_seconds: float | None = Field(default=None, gt=0)  # for the evaluation of one run; None: no limit
    own_protocols: dict[Name, Shown] = {}  # those that are not of bench/protocols

    def radii(self, norm: Norm) -> tuple[float, ...]:
        """The radii that were asked for in a norm."""
        return self.eps if norm == "linf" else self.eps_l2


class RunSpec(Data):
    """One run: a method trained with one seed under one budget, then evaluated."""

    unwritten = ("gpus_per_run", "encoder_path")
    method: Name
    method_path: str | None = None  # a .py file of the user's own
    label: Name | None = None  # the name of a row of a suite; None: the method's
    settings: dict[str, Any] = {}  # --set and suites; the dataset's OVERRIDES are applied below them
    data: DataSpec
    seed: int = Field(default=0, ge=0, lt=10**10)
    budget: Budget
    device: str = "cpu"
    gpus_per_run: int = Field(default=1, gt=0)  # ranks that share each batch, one for each device from ``device`` on
    precision: Precision = "fp32"  # of training; float32 decides every evaluation
    compiled: bool = False
    threads: int | None = None
    encoder: str | None = None  # None: the dataset's default
    encoder_path: str | None = None  # a .py file of the user's own
    eval: EvalSpec = Field(default_factory=EvalSpec)  # not built before it is needed: 0.1 s of every command

    @property
    def row(self) -> str:
        """The name in every table: that of the suite's row, or the method's."""
        return self.label or self.method

    @property
    def name(self) -> str:
        """Folder name of the run: row and seed."""
        return f"{self.row}-s{self.seed}"

    @property
    def foreign(self) -> bool:
        """Whether this stands for a model that was trained elsewhere (``bench evaluate``): its budget says nothing."""
        return "weights_sha256" in self.settings


class Setting(Data):
    """One resolved setting of a method and where its value comes from (text, sound, code, the dataset, --set)."""

    name: str
    value: Any
    source: str


class Environment(Data):
    """The machine and the software that made a number."""

    python: str
    torch: str
    versions: dict[str, str]
    platform: str
    cpu: str
    cores: int  # that the process may use
    threads: int
    device: str  # as asked for: cpu, cuda:0
    device_name: str  # the GPU's name, or the CPU's
    precision: str
    commit: str | None = None
    dirty: bool | None = None
    node: str = ""  # host name, of rank 0 and the last machine of a run that moved; "" in records without it


class DataInfo(Data):
    """What was loaded: label as shown in every table, counts, and hashes of the pixels and labels."""

    label: str
    train: int
    test: int
    classes: int
    image_shape: tuple[int, int, int]
    train_sha256: str
    test_sha256: str
    subset: bool
    duplicates: int | None = None  # test images whose pixels are those of a training image; None: not counted
    notes: tuple[str, ...] = ()  # for people: what was left out, what files have lost, duplicates


class TrainResult(Data):
    """What training gave and what it cost. ``..._per_image``: per image of the training set and epoch."""

    unwritten = ("stages",)
    status: Status
    updates: int
    epochs: float
    train_seconds: float
    compile_seconds: float
    progress: float  # share of the budget spent, in [0, 1]
    images_per_second: float
    forward_per_image: float
    backward_input_per_image: float
    backward_weight_per_image: float
    flops_per_image: float
    peak_memory_bytes: int
    matrix_share: float | None = None  # of the matrix products' peak on this device, measured in the same process
    schedule_active: float | None = None  # share of (update, weight) in which the schedule's lr decided
    data_seconds: float = 0.0  # loading and augmentation
    data_wait_seconds: float = 0.0  # of these, how long the step stood still until its images were there
    attack_seconds: float = 0.0
    update_seconds: float = 0.0
    energy_joules: float | None = None  # of the GPU; None where nothing measures it
    median_update_seconds: float
    first_loss: float | None = None
    last_loss: float | None = None
    last_lr: float
    losses: list[tuple[float, float]] = []  # (progress, loss)
    stages: list[dict[str, Any]] = []  # of a training that has several: what each has cost (bench.training.stages)
    encoder_sha256: str = ""  # of the weights that are stored
    calibration: tuple[float, float] | None = None  # clock probe: seconds per unit of the load before, after
    thread_gain: float | None = None  # pace of the probe's load on all threads over that on one; None for one thread
    load_average: float | None = None  # of the machine, over the minute before the start
    gpu_processes: int | None = None  # of others
    throttling: tuple[str, ...] | None = None  # what slowed the GPU
    paused: dict[str, float] = {}  # reason -> seconds off the clock between the first update and the last
    preemptions: int = 0  # how often the training was stopped or killed, and went on
    lost_seconds: float = 0.0  # of training that was done again after a kill: not charged
    note: str = ""
    code: str = ""  # hash of the files that made this (bench.identity.source); so in the records below


class ProbeResult(Data):
    """What a protocol has fitted on frozen features, and what it does on clean images; a linear one has a penalty."""

    protocol: Name
    feature_width: int
    penalty: float = 0.0  # lambda; 0: there is none
    gradient_norm: float = 0.0
    scale: float = 1.0  # the one number that features are divided by
    held_out: list[tuple[float, int, int]] = []  # (lambda, correct, total) on held-out training images
    train_correct: int
    train_total: int
    seconds: float
    band: list[tuple[float, int, int]] = []  # (lambda, correct, total) under PGD at the main eps
    sha256: str = ""  # of the tensors as stored
    note: str = ""
    code: str = ""


class EvalResult(Data):
    """One attack at one eps under one protocol. ``outcomes``: '1' where the image stands, in the fixed test order."""

    unwritten = ("norm",)
    protocol: Name
    attack: Name
    threat_space: Literal["image", "crop"]
    norm: Norm = "linf"
    eps: float
    outcomes: str = Field(pattern="^[01]*$")
    curve: bool = False  # drawn for the curve over eps, not asked for with --eps
    seconds: float
    config: dict[str, Any] = {}
    config_hash: str = ""
    complete: bool = True  # False: stages are missing, and the accuracy is an upper bound
    stages: list[tuple[str, int]] = []  # of an attack that has several: (name, images standing after it)
    flips: int = 0  # images broken in the search's precision but not in float32, and attacked again in float32
    traces: list[str] = []  # what the model changes in itself while it is attacked (bench.evaluation.traces)
    images_sha256: Sha256 = ""  # of the first images that it returned, where they are kept
    failed: str = ""  # why there is no number: what the attack did; outcomes are then those of the stages before it
    note: str = ""
    code: str = ""

    @property
    def threat(self) -> ThreatModel:
        """What the attack was allowed to do."""
        return ThreatModel(eps=self.eps, norm=self.norm, space=self.threat_space)

    @property
    def correct(self) -> int:
        return self.outcomes.count("1")

    @property
    def total(self) -> int:
        return len(self.outcomes)


class Check(Data):
    """One check of the audit (protocol 3): what was found, against which bound, on how many images, at what cost."""

    id: str  # S1 ... S16, A1 ... A22, M1 ... M6
    verdict: Verdict
    value: float | None = None
    threshold: str = ""  # in words, as printed
    n: int = 0
    passes: float = 0.0  # forward passes of one image; a gradient counts as one more
    seconds: float = 0.0
    note: str = ""


class Audit(Data):
    """The audit of one protocol's ranked number, and the images that it broke although the ranked attacks had not."""

    protocol: Name
    level: AuditLevel
    eps: float
    checks: list[Check]
    broken: dict[str, list[int]] = {}  # check -> places in the test order of images that only it broke
    ranked_correct: int = 0
    audited: int = 0  # images that the ranked attacks both saw
    evidence: str = ""  # SHA-256 of what was judged: weights, probe, images, results
    code: str = ""

    @property
    def verdict(self) -> Literal["PASS", "FLAG", "FAIL", "NOT_RUN"]:
        """FAIL or NOT_RUN: shown, struck through, not ranked. FLAG: ranked with a mark."""
        found = {check.verdict for check in self.checks}
        if "FAIL" in found:
            return "FAIL"
        if not self.checks or "NOT_RUN" in found:
            return "NOT_RUN"
        return "FLAG" if "WARN" in found else "PASS"

    @property
    def worst_audited(self) -> int:
        """Images that stand under the ranked attacks and under every attack of the audit."""
        return self.ranked_correct - len({place for places in self.broken.values() for place in places})


class Record(Data):
    """Everything that is known of one run; ``train`` is None before training has ended."""

    spec: RunSpec
    adversary: str = "none"
    supervised: bool = False  # trained with labels: a ceiling, never ranked
    data: DataInfo | None = None
    settings: list[Setting] = []
    environment: Environment | None = None
    sources: dict[str, dict[str, str]] = {}  # part -> file -> hash of the code (bench.identity.source)
    train: TrainResult | None = None
    probes: list[ProbeResult] = []
    results: list[EvalResult] = []
    failed: list[EvalResult] = []  # cells whose attack failed: they have no number, and the same command tries again
    audits: list[Audit] = []
    status: Status | Literal["pending"] = "pending"
    message: str = ""

    @model_validator(mode="after")
    def _one_result_per_cell(self) -> Self:
        cells = [(r.protocol, r.attack, r.norm, r.eps) for r in [*self.results, *self.failed]]
        if len(set(cells)) != len(cells):
            raise ValueError(f"expected one result per cell, got {sorted(cells)}")
        return self


class Manifest(Data):
    """What was asked of a whole run folder, and where it was made (manifest.json)."""

    schema_version: int = 1
    bench_version: str
    command: list[str]
    created: str  # ISO 8601, for people only
    budget: Budget | None  # None: the rows have different ones
    total_budget: Budget | None = None
    runs: list[RunSpec]
    seeds: list[int]
    data: DataInfo
    dataset_source: str = ""
    main_eps: float
    environment: Environment
    code: dict[str, str] = {}  # row -> hash of all code that makes its runs
