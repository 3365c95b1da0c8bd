"""The base of every method: its settings with their sources, its views, features and embeddings.

Sources of settings: ``text`` (the paper), ``sound`` (where the released code is faulty), ``code`` (the released code),
``unverified`` (a guess where the paper says no number), ``own`` (the method's file). A dataset and --set may change
them, and say so.
"""

import dataclasses
import inspect
import itertools
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.ranges import Range, around
from bench.record import Setting
from bench.spec import UsageError, unknown
from bench.values import parse_setting
from methods.common.augment import Draws, augment
from methods.common.losses import widen
from methods.common.optim import OptimizerName, build_optimizer, warmed

AdversaryName = Literal["none", "pgd", "free", "nfgsm"]
BatchNormMode = Literal["batch", "eval", "released"]
Horizon = Literal["scaled", "batches"]


def setting(default: Any, source: str, tune: Range | None = None) -> Any:
    """A field of a Config with its default, where that comes from, and the range that `bench tune` searches, if any."""
    return dataclasses.field(default=default, metadata={"source": source, "tune": tune})


def ranges(config: type["BaseConfig"]) -> dict[str, Range]:
    """The settings of a Config that can be tuned: name -> range, its own or that of the class it inherits.

    Raises UsageError where something else stands in its place.
    """
    said: dict[str, Range] = {}
    for base in reversed(config.__mro__):
        own = inspect.get_annotations(base) if dataclasses.is_dataclass(base) else {}
        for field in dataclasses.fields(base) if own else ():
            tune = field.metadata.get("tune") if field.name in own else None
            if not isinstance(tune, Range | None):
                known = "around(10), between(0, 1) or log_range(0.1, 10) of bench.ranges"
                raise UsageError(f"expected tune of {field.name} as {known}, got {tune!r}")
            if tune is not None:
                said[field.name] = tune
    return said


@dataclass(frozen=True)
class Stage:
    """A part of a training: its share of the budget, and the settings that differ in it (adversary, lr, batch ...)."""

    share: float = 1.0
    name: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class BaseConfig:
    """Settings that every method has; the defaults are those of the paper's SimCLR rows.

    Those of one adversary do nothing under another, so a suite may set them for all methods at once.
    """

    least_views: ClassVar[int] = 2

    views: int = setting(2, "text")  # V, or C in the paper
    batch: int = setting(512, "code")  # b
    crop_scale: tuple[float, float] = setting((0.08, 1.0), "text")  # share of the image's area
    crop_ratio: tuple[float, float] = setting((3 / 4, 4 / 3), "code")
    view_share: float = setting(1.0, "code")  # side of a view, to which crops are resized, over that of the image
    flip: float = setting(0.5, "code")
    jitter: tuple[float, float, float, float] = setting((0.4, 0.4, 0.4, 0.1), "code")  # brightness ... hue
    jitter_probability: float = setting(0.8, "code")
    gray: float = setting(0.2, "code")
    blur: float = setting(0.0, "code")
    solarize: float = setting(0.0, "code")
    feature_width: int = setting(4096, "code")  # the layer that the probe reads
    hidden_width: int = setting(4096, "code")
    embedding_width: int = setting(128, "code")
    optimizer: OptimizerName = setting("lars", "code")
    warm_up: float = setting(0.0, "code")  # share of the budget in which the learning rate rises to lr
    lr: float = setting(0.3, "code", tune=around(10))
    momentum: float = setting(0.9, "code")
    weight_decay: float = setting(1e-4, "code", tune=around(10))
    trust: float = setting(0.005, "code")  # eta of LARS
    adversary: AdversaryName = setting("none", "text")
    eps: float = setting(8 / 255, "text")  # of the training adversary
    step: float = setting(0.01, "code")  # alpha
    steps: int = setting(5, "text")  # of PGD
    replays: int = setting(3, "text")  # m of free adversarial training
    random_start: bool = setting(False, "code")  # of PGD, uniform in the ball
    clamp_carried: bool = setting(True, "sound")  # first replay of free: pixels in [0, 1] under another image's delta
    attack_batch_norm: BatchNormMode = setting("batch", "sound")
    leak_attack_gradients: bool = setting(False, "sound")  # of PGD: the update adds the gradients of all its steps
    horizon: Horizon = setting("scaled", "sound")  # of the schedule; batches: as if a replay were no update
    schedule_share: float = setting(1.0, "sound")  # of the schedule that the budget covers; below 1 it stops on the way

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            numbers = [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, float)]
            self.check(name, all(map(math.isfinite, numbers)), "finite")
        for name, least in (("batch", 2), ("views", self.least_views)):
            self.check(name, getattr(self, name) >= least, f"of at least {least}")
        for name in ("steps", "replays", "feature_width", "hidden_width", "embedding_width"):
            self.check(name, getattr(self, name) >= 1, "of at least 1")
        for name in ("flip", "jitter_probability", "gray", "blur", "solarize", "eps", "step"):
            self.check(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        self.check("view_share", 0 < self.view_share <= 1, "in (0, 1]")
        self.check("crop_scale", 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1, "in (0, 1], smaller value first")
        self.check("crop_ratio", 0 < self.crop_ratio[0] <= self.crop_ratio[1], "above 0, smaller value first")
        self.check("lr", self.lr > 0, "above 0")
        self.check("momentum", 0 <= self.momentum < 1, "in [0, 1)")
        self.check("warm_up", 0 <= self.warm_up < 1, "in [0, 1)")
        self.check("schedule_share", 0 < self.schedule_share <= 1, "in (0, 1]")
        for name in ("weight_decay", "trust"):
            self.check(name, getattr(self, name) >= 0, "of at least 0")

    def check(self, name: str, fine: bool, expected: str) -> None:
        """Raises UsageError with the setting's value unless it is fine."""
        if not fine:
            raise UsageError(f"expected {name} {expected}, got {getattr(self, name)!r}")

    @property
    def traits(self) -> set[str]:
        """What a dataset's OVERRIDES may ask for: all; single, pair or multi; patch or crop; the adversary's name."""
        views = {1: "single", 2: "pair"}.get(self.views, "multi")
        return {"all", views, "patch" if self.crop_scale[0] == self.crop_scale[1] else "crop", self.adversary}

    def view_side(self, side: int) -> int:
        """Pixels of a side of the square views of images that are so wide."""
        return round(self.view_share * side)

    @property
    def updates_per_batch(self) -> int:
        """Each replay of free adversarial training is an update."""
        return self.replays if self.adversary == "free" else 1

    @property
    def schedule_waves(self) -> int:
        """Half waves of the cosine learning rate over the budget: 1; with a horizon in batches, one per replay.

        The released code steps the scheduler in every replay, but its horizon counts batches (arXiv:2501.03507): with
        m = 3 the rate goes .3, 0, .3, 0 over the thirds of the budget, and with an even m it ends at its peak.
        """
        return self.updates_per_batch if self.horizon == "batches" else 1


class BaseMethod(nn.Module):
    """An objective over views. A subclass builds its heads and gives the loss; it knows no attack and no clock.

    It writes ``build`` and ``loss``; where the loss needs the clean views beside those that an adversary has moved,
    ``objective`` and ``adversarial_loss`` instead. The rest has a default that most methods keep.

    Where several ranks make a run, each has its part of the images, and ``gather`` makes (V, B, ...) of the batch out
    of the (V, B / ranks, ...) of each: the loss is that of the whole batch, the same on every rank. ``embed`` does so.
    """

    moves: slice = slice(None)  # the views that an adversary may move
    supervised: ClassVar[bool] = False
    labels: Tensor | None = None  # (B,) int64 of the whole batch, set before each loss where ``supervised``, else None
    progress: float = 0.0  # share of the stage that was spent before this update, in [0, 1], set by the trainer
    config: BaseConfig
    encoder: nn.Module
    projector: nn.Module
    classes: int

    def __init__(self, config: BaseConfig) -> None:
        super().__init__()
        self.config = config
        self.gather: Callable[[Tensor], Tensor] = whole

    def extra_data(self) -> str:
        """What it learns from that neither the training images nor the budget have made, in a few words, or "".

        Asked before the run begins, and shown beside each of its numbers. Raises UsageError where it is not there.
        """
        return ""

    def attach(self, encoder: nn.Module, classes: int = 10) -> Self:
        """Give the method its encoder, (B, C, H, W) in [0, 1] -> features (B, encoder.width), and build the heads."""
        self.encoder, self.classes = encoder, classes
        self.build(int(encoder.width))  # type: ignore[arg-type]
        return self

    def build(self, width: int) -> None:
        """Make the heads for features of this width, and all other modules; those that take no gradient are frozen."""
        raise NotImplementedError

    def loss(self, views: Tensor) -> Tensor:
        """The scalar to minimize, for views (V, B, C, H, W) in [0, 1]."""
        return self.objective(views, views)

    def objective(self, clean: Tensor, moved: Tensor) -> Tensor:
        """The same where it depends on the views before and after an adversary moved them, each (V, B, C, H, W)."""
        return self.loss(moved)

    def clean(self, views: Tensor) -> Any:
        """What the adversary needs of the unmoved views, computed once per attack without gradients."""
        return None

    def adversarial_loss(self, moved: Tensor, clean: Any) -> Tensor:
        """The scalar that the adversary maximizes over the views that it moves, (len(moves), B, C, H, W)."""
        return self.loss(moved)

    def after_update(self) -> None:
        """Called after every optimizer step (momentum teachers, whose rate may follow ``self.progress``)."""

    def stages(self) -> tuple[Stage, ...]:
        """The stages of a training, whose shares of the budget sum to 1. Most methods have one."""
        return (Stage(),)

    def begin(self, stage: int) -> None:
        """Called before the first update of a stage, with its settings in ``self.config``: copy, freeze, start anew."""

    def optimizer(self) -> torch.optim.Optimizer:
        """A new optimizer of what is trained in this stage; each of its groups may have a learning rate of its own."""
        c = self.config
        trained = [weight for weight in self.parameters() if weight.requires_grad]
        return build_optimizer(
            c.optimizer, trained, lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay, trust=c.trust
        )

    def schedule(self, progress: float) -> float:
        """What every learning rate is multiplied by when ``progress``, in [0, 1], of the stage is spent."""
        return warmed(progress * self.config.schedule_share, self.config.warm_up, self.config.schedule_waves)

    @property
    def adversary(self) -> str:
        """That of the last stage: what the encoder was trained against in the end."""
        return str(self.stages()[-1].settings.get("adversary", self.config.adversary))

    def kept(self) -> nn.Module:
        """What is evaluated and stored: an encoder whose weights are named as those of the one that it was given."""
        return self.encoder

    def augment(self, images: Tensor, draws: Draws) -> Tensor:
        """Training views (V, B, C, H, W) in [0, 1] of images (B, C, H, W), uint8 or in [0, 1]."""
        return self.drawn(images, draws)

    def drawn(self, images: Tensor, draws: Draws, **changed: Any) -> Tensor:
        """The views of the settings, but for what is ``changed``: arguments of methods.common.augment.augment."""
        c = self.config
        settings: dict[str, Any] = {
            "views": c.views,
            "size": c.view_side(images.shape[-1]),
            "scale": c.crop_scale,
            "ratio": c.crop_ratio,
            "flip": c.flip,
            "jitter": c.jitter,
            "jitter_probability": c.jitter_probability,
            "gray": c.gray,
            "blur": c.blur,
            "solarize": c.solarize,
        }
        return augment(images, draws, **settings | changed)

    def embed(self, views: Tensor) -> Tensor:
        """Unit embeddings (V, B, D), float32 at least, by one forward over all views: batch norm sees them together."""
        return self.units(self.projector(self.encoder(views.flatten(0, 1))), len(views))

    def units(self, rows: Tensor, views: int = 1) -> Tensor:
        """Unit vectors (V, B, D) of the whole batch, float32 at least, from rows (V B / ranks, D), view-major."""
        return self.gather(F.normalize(widen(rows), dim=1).unflatten(0, (views, -1)))


def whole(part: Tensor) -> Tensor:
    """What a rank that is alone gathers: its own part."""
    return part


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them."""
    layers: list[nn.Module] = []
    for inside, outside in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(inside, outside), nn.BatchNorm1d(outside), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def resolve(
    config: type[BaseConfig], dataset: str, overrides: dict[str, dict[str, Any]], chosen: dict[str, Any]
) -> tuple[BaseConfig, list[Setting]]:
    """The settings of one run and where each comes from: the method's, then the dataset's, then the user's.

    ``overrides`` maps traits ("multi pgd") to changed settings and applies where the config has all of them;
    ``chosen`` may hold text (from --set) or values (from a suite). Raises UsageError naming the bad key or value.
    """
    default = config()
    known = {field.name: field for field in dataclasses.fields(config)}
    types = typing.get_type_hints(config)
    values = {name: getattr(default, name) for name in known}
    sources = {name: str(field.metadata.get("source", "own")) for name, field in known.items()}
    for key in chosen:
        if key not in known:
            raise UsageError(unknown("setting", key, known))
    layers = [(dataset, changed) for traits, changed in overrides.items() if set(traits.split()) <= default.traits]
    layers.append(("--set", {key: parse_setting(key, value, types[key]) for key, value in chosen.items()}))
    for source, changed in layers:
        for key in changed:
            if key not in known:
                raise UsageError(f"OVERRIDES of {dataset}: {unknown('setting', key, known)}")
        values.update(changed)
        sources.update(dict.fromkeys(changed, source))
    for name, kind in typing.get_type_hints(BaseConfig).items():
        if name in values:  # whatever a subclass, or a dataset, says of it
            parse_setting(name, values[name], kind)
    made = config(**values)
    for name in chosen:
        if getattr(made, name) != values[name]:
            raise UsageError(f"--set {name}={values[name]} has no effect: the method makes {getattr(made, name)} of it")
    return made, [Setting(name=name, value=getattr(made, name), source=sources[name]) for name in known]
