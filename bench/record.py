"""What came of a run, as pure data: training, heads, attacks, audit. What is asked for is in bench.spec.

Accuracies and eps are fractions in [0, 1]; times are seconds; a count is two integers, correct and total.
"""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from bench.spec import AuditLevel, Budget, Data, Name, Norm, RunSpec, Sha256, ThreatModel
from bench.tuned import Tuning

Status = Literal["finished", "diverged", "oom", "preempted", "failed"]
Verdict = Literal["PASS", "WARN", "FAIL", "N/A", "NOT_RUN", "not in this level"]


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

    unwritten = ("stages", "extra_data")
    status: Status
    extra_data: str = ""  # what it has learnt from beside its images and its budget
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
    """What a protocol has fitted, what it cost, and what it does on clean training images.

    A linear probe has chosen a penalty, a head that was trained on attacked images a learning rate.
    """

    unwritten = ("learning_rate", "passes")
    protocol: Name
    feature_width: int
    penalty: float = 0.0  # lambda; 0: there is none
    gradient_norm: float = 0.0
    scale: float = 1.0  # the one number that features are divided by
    learning_rate: float = 0.0  # 0: there is none
    held_out: list[tuple[float, int, int]] = []  # (lambda or rate, correct, total) on held-out training images
    train_correct: int
    train_total: int
    seconds: float
    passes: float = 0.0  # of one image through the encoder that the fit took; 0 in records without it
    band: list[tuple[float, int, int]] = []  # (lambda or rate, correct, total) under PGD at the main eps
    sha256: str = ""  # of the tensors as stored
    note: str = ""
    code: str = ""

    @property
    def chosen(self) -> float:
        """What its rule has chosen on held-out training images: a penalty or a learning rate; 0 where nothing was."""
        return self.penalty or self.learning_rate


class EncoderShift(Data):
    """How far the features move within the l-inf ball, before any head (bench.evaluation.embedding).

    Shifts are in mean distances between the clean features of different images, and of the furthest point that was
    met; a cosine is that between centred features before and after. None where nothing can be said: the note says why.
    """

    eps: float
    images: int
    mean: float | None = None  # of the relative shift over images
    median: float | None = None
    cosine_mean: float | None = None
    cosine_median: float | None = None
    spread: float | None = None  # mean distance between the clean features of two images
    seconds: float
    config: dict[str, Any] = {}
    note: str = ""
    code: str = ""


class EvalResult(Data):
    """One attack at one eps under one protocol. ``outcomes``: '1' where the image stands, in the fixed test order."""

    unwritten = ("norm", "stopped", "distances")
    protocol: Name
    attack: Name
    threat_space: Literal["image", "crop"]
    norm: Norm = "linf"
    eps: float
    outcomes: str = Field(pattern="^[01]*$")
    distances: list[float | None] = []  # of an attack without an eps: to what broke each image; None where nothing did
    curve: bool = False  # drawn for the curve over eps, not asked for with --eps
    seconds: float
    config: dict[str, Any] = {}
    config_hash: str = ""
    complete: bool = True  # False: stages are missing, and the accuracy is an upper bound
    stopped: bool = False  # by --eval-budget, after the last of its stages
    stages: list[tuple[str, int]] = []  # of an attack that has several: (name, images standing after it)
    flips: int = 0  # images broken in the search's precision but not in float32, and attacked again in float32
    traces: list[str] = []  # what the model changes in itself while it is attacked (bench.evaluation.traces)
    images_sha256: Sha256 = ""  # of the first images that it returned, where they are kept
    failed: str = ""  # why there is no number: what the attack did; outcomes are then those of the stages before it
    note: str = ""
    code: str = ""

    @property
    def apart(self) -> bool:
        """Whether this is no attack at an eps, and stands in tables of its own: corruptions, and distances."""
        return self.attack == "corruptions" or bool(self.distances)

    @property
    def bound(self) -> str:
        """Why the accuracy is an upper bound: after which stage the attack was stopped; "" where it is complete."""
        last = self.stages[-1][0] if self.stages else "its first images"
        return "" if self.complete else f"upper bound: stopped {'by --eval-budget ' * self.stopped}after {last}"

    @property
    def remarks(self) -> list[str]:
        """What a reader of the number has to know."""
        return [remark for remark in (self.bound, self.note) if remark]

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

    id: str  # S1 ... S16, A1 ... A23, M1 ... M6
    verdict: Verdict
    value: float | None = None
    threshold: str = ""  # in words, as printed
    n: int = 0
    passes: float = 0.0  # forward passes of one image; a gradient counts as one more
    seconds: float = 0.0
    note: str = ""
    proof: str = ""  # of A14: what it was asked with; with the same it is not asked again


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
        verdicts = {check.verdict for check in self.checks}
        if "FAIL" in verdicts:
            return "FAIL"
        if not self.checks or "NOT_RUN" in verdicts:
            return "NOT_RUN"
        return "FLAG" if "WARN" in verdicts else "PASS"

    @property
    def worst_audited(self) -> int:
        """Images that stand under the ranked attacks and under every attack of the audit."""
        return self.ranked_correct - len({place for places in self.broken.values() for place in places})


class Record(Data):
    """Everything that is known of one run; ``train`` is None before training has ended."""

    unwritten = ("shift", "title")
    spec: RunSpec
    title: str = ""  # TITLE of a user's own method: its file may not be there when a report is made
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
    shift: EncoderShift | None = None
    status: Status | Literal["pending"] = "pending"
    message: str = ""
    missing: str = ""  # cells and checks that a finished run is still to have: the same command goes on with them

    @property
    def extra_data(self) -> str:
        """What its training has learnt from beside its images and its budget, in a few words, or ""."""
        return self.train.extra_data if self.train is not None else ""

    @model_validator(mode="after")
    def _one_result_per_cell(self) -> Self:
        cells = [(r.protocol, r.attack, r.norm, r.eps) for r in [*self.results, *self.failed]]
        if len(set(cells)) != len(cells):
            raise ValueError(f"expected one result per cell, got {sorted(cells)}")
        return self


class Manifest(Data):
    """What was asked of a whole run folder, and where it was made (manifest.json)."""

    unwritten = ("tuning",)
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
    tuning: Tuning | None = None  # the search behind the rows that are tuned
