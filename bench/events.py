"""What a process tells while it works, one JSON object per line: progress for whoever shows it, never a result."""

from collections.abc import Callable
from typing import Any, Literal, NotRequired, TypedDict


class About(TypedDict):
    """What follows is about the run, or the row, of this name; told where a process works on several."""

    event: Literal["about"]
    name: str


class TrainProgress(TypedDict):
    """Where a training is: the share of its budget, updates, seconds on its clock."""

    event: Literal["train"]
    progress: float
    loss: float
    updates: int
    seconds: float
    images_per_second: float
    seconds_left: float


class Trained(TypedDict):
    event: Literal["trained"]
    updates: int
    seconds: float
    loss: float | None
    remarks: list[str]


class Probing(TypedDict):
    """The head of a protocol is being fitted."""

    event: Literal["probe"]
    protocol: str


class Attacking(TypedDict):
    """An attack goes on: so many of its images are done, or what it says itself."""

    event: Literal["attack"]
    protocol: str
    attack: str
    eps: float
    done: NotRequired[int]
    total: NotRequired[int]
    message: NotRequired[str]


class Counted(TypedDict):
    """A cell has its number."""

    event: Literal["cell"]
    protocol: str
    attack: str
    eps: float
    correct: int
    total: int
    seconds: float
    note: str


class Failed(TypedDict):
    """A cell has none."""

    event: Literal["failed"]
    protocol: str
    attack: str
    eps: float
    message: str


class Seen(TypedDict):
    """Shares of held-out training images that are right at a mark of the training; None where PGD did not ask.

    ``alarm``: what the course so far warns of, or "" (bench.alarms).
    """

    event: Literal["curve"]
    percent: int
    clean: float
    robust: float | None
    alarm: str


class Audited(TypedDict):
    event: Literal["audit"]
    protocol: str
    verdict: str
    level: str


class Damaged(TypedDict):
    """Something stored cannot be used; the run goes on without it."""

    event: Literal["damaged"]
    message: str


class Ended(TypedDict):
    """The run has a status of its own."""

    event: Literal["ended"]
    status: str
    message: str


class Opened(TypedDict):
    """The results of an evaluation go to this folder."""

    event: Literal["opened"]
    out: str


class Remark(TypedDict):
    event: Literal["remark"]
    message: str


class Measured(TypedDict):
    """What the plan wanted to know of the row that the last ``about`` names (bench.runs.plan.Measured)."""

    event: Literal["measured"]
    found: dict[str, Any]


class Error(TypedDict):
    event: Literal["error"]
    message: str


class Disk(TypedDict):
    """The process could not write."""

    event: Literal["disk"]
    message: str


class Exit(TypedDict):
    """The last of a run: its process has ended by itself, with this code, on this node."""

    event: Literal["exit"]
    code: int
    message: NotRequired[str]
    node: NotRequired[str]


class Lost(TypedDict):
    """Or: its worker or node is gone; it can be started again."""

    event: Literal["lost"]
    message: str


class Home(TypedDict):
    """The last that a worker tells: the run has ended, and its files are on their way."""

    event: Literal["home"]


Progress = (
    About | TrainProgress | Trained | Probing | Attacking | Counted | Failed | Seen | Audited | Damaged | Ended
    | Opened | Remark | Measured | Error | Disk
)  # fmt: skip
Last = Exit | Lost  # with which the engine ends each run
Event = Progress | Last | Home
Report = Callable[[Event], None]


def silent(event: Event) -> None:
    """The report of whoever does not listen."""
