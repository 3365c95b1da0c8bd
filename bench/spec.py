"""What is asked for, as pure data: a budget, a threat, images, a run and its evaluation. What came of it: bench.record.

Eps are fractions in [0, 1] and times are seconds.
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

Level = Literal["quick", "standard", "full"]
Precision = Literal["fp32", "bf16"]
AuditLevel = Literal["off", "core", "full"]
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

    unwritten = ("held_out",)
    name: str
    path: str | None = None
    root: str | None = None
    train_images: int | None = Field(default=None, gt=0)
    test_images: int | None = Field(default=None, gt=0)
    image_size: int | None = Field(default=None, ge=8, le=4096)  # that encoded images are resized to; None: theirs
    classes: str | None = None  # a file that lists them
    held_out: bool = False  # a fifth of the training images are tested on, and the test images never read


class EvalSpec(Data):
    """How an encoder is scored (protocol of the project, sections 1.1 to 1.6)."""

    unwritten = (
        "attack_paths",
        "attack_norms",
        "attack_settings",
        "eps_l2",
        "own_protocols",
        "protocol_settings",
        "corruption_images",
        "minimum_norm",
    )
    level: Level = "quick"
    attacks: tuple[Name, ...] = ("pgd", "autoattack")
    attack_paths: dict[Name, str] = {}  # of .py files of the user's own
    attack_norms: dict[Name, Norm] = {}  # of those that are not l-inf
    attack_settings: dict[Name, dict[str, Any]] = {}  # --set
    eps: tuple[float, ...] = (0.05, 0.1)  # of attacks in l-inf
    eps_l2: tuple[float, ...] = ()  # of attacks in l2
    minimum_norm: tuple[Name, ...] = ()  # those of the attacks that have no eps
    corruption_images: int = Field(
        default=0, ge=0
    )  # under every corruption (bench.data.corruptions); 0: none asked for
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
    protocol_settings: dict[Name, dict[str, Any]] = {}  # of the level, the dataset and --set

    def radii(self, norm: Norm) -> tuple[float, ...]:
        """The radii that were asked for in a norm."""
        return self.eps if norm == "linf" else self.eps_l2


class RunSpec(Data):
    """One run: a method trained with one seed under one budget, then evaluated."""

    unwritten = ("gpus_per_run", "encoder_path", "tuned")
    method: Name
    method_path: str | None = None  # a .py file of the user's own
    label: Name | None = None  # the name of a row of a suite; None: the method's
    settings: dict[str, Any] = {}  # --set and suites; the dataset's OVERRIDES are applied below them
    tuned: bool = False  # they were chosen by a search (bench tune), which the manifest has
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
