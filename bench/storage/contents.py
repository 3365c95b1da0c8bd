"""What the files of a run's folder hold beside its record (bench.record); where they lie says bench.storage.store."""

from typing import Annotated

from pydantic import Field

from bench.record import Audit
from bench.spec import Data, Name, Sha256

Png = Annotated[str, Field(pattern="^[A-Za-z0-9+/]*=*$")]  # base64


class Audits(Data):
    """audit.json: the audits of the protocols, in the order in which they were made."""

    audits: list[Audit]


class Example(Data):
    """One test image, what an attack made of it, and the classes that were predicted (-1: logits are not finite)."""

    label: int
    before: int
    after: int
    attack: str
    image: Png
    adversarial: Png
    perturbation: Png  # grey where nothing moved, black and white at -eps and eps


class Examples(Data):
    """examples/<protocol>.json: the first images of the test order, the same for every method."""

    protocol: Name
    eps: float
    examples: list[Example]


class Snapshot(Data):
    """snapshots/<percent>.json: where in a training the encoder in the file beside it was taken."""

    percent: int  # of the budget: the mark
    progress: float  # share of the budget that was spent, at or past the mark
    updates: int
    train_seconds: float
    energy_joules: float | None = None
    sha256: Sha256 = ""  # of the weights as stored


class Point(Data):
    """One encoder of a curve. Counts are (correct, total) on held-out training images: never the test set."""

    snapshot: Snapshot
    passes_per_image: float  # of all kinds, over the training so far
    clean: tuple[int, int]
    robust: tuple[int, int] | None = None  # under PGD at eps; None where it was not asked for
    eps: float
    seconds: float


class Curve(Data):
    """curve.json: the points of one run in the order of its training."""

    points: list[Point]
    code: str = ""  # hash of the files that made them


class Beat(Data):
    """beat.json: how far a training had come when it was last heard of; may be lost in a power cut."""

    seconds: float
    updates: int
