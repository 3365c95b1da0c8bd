"""What the plan says of a method that cannot be measured: why, and the others are measured in another process."""

import itertools
from typing import ClassVar

import pytest

from bench.runs import measuring
from bench.runs.measuring import measure_plan, measure_rows
from bench.runs.plan import Measured
from bench.spec import Budget, DataSpec, EvalSpec, RunSpec, UsageError

FOUND = {"adversary": "none", "updates": 3, "update_seconds": 1.0, "warm_up_seconds": 1.0, "train_images": 9,
         "test_images": 9, "peak_memory_bytes": 1, "passes": {"linear": (0.1, 0.1)}}  # fmt: skip
SPECS = [
    RunSpec(method=name, seed=seed, data=DataSpec(name="digits"), budget=Budget.parse("3up"),
            eval=EvalSpec(protocols=("linear",), attacks=("pgd",)))
    for seed in (0, 1) for name in ("fine", "broken", "fast")
]  # fmt: skip


class Child:
    """A process that measures each row until the one that breaks, where it does what ``end`` says."""

    started: ClassVar[list["Child"]] = []
    end: ClassVar[dict[str, object]] = {}

    def __init__(self, task, log, lock):
        self.rows, self.closed, self.hung = [spec["method"] for spec in task["specs"]], False, False
        self.began = list(self.rows)
        self.started.append(self)

    def heard(self, seconds):
        if self.hung:
            return []
        if not self.rows:
            return None
        row = self.rows.pop(0)
        if row == "unreadable":
            self.rows.clear()
            return [{"event": "error", "message": "no images"}]
        if row != "broken":
            return [{"event": "about", "name": row}, {"event": "measured", "found": {"row": row, **FOUND}}]
        self.rows.clear()
        self.hung = self.end["hangs"]
        said = [{"event": "error", "message": self.end["message"]}] if self.end["message"] else []
        return [{"event": "about", "name": row}, *said]

    def ended(self):
        return self.end["code"]

    def close(self):
        self.closed = True


@pytest.fixture
def process(monkeypatch):
    """Sets what the process of the broken method does; time moves by a minute at each look."""
    monkeypatch.setattr("bench.engines.child.Child", Child)
    monkeypatch.setattr(Child, "started", [])
    minutes = itertools.count(0, 60)
    monkeypatch.setattr(measuring.time, "monotonic", lambda: float(next(minutes)))

    def set_end(message="", code=1, hangs=False):
        Child.end = {"message": message, "code": code, "hangs": hangs}
        return Child.started

    return set_end


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (
            {"message": "loss: expected a scalar tensor, got None", "code": 2},
            "loss: expected a scalar tensor, got None",
        ),
        ({"code": -11}, "the process ended with code -11; see log.txt"),
        ({"hangs": True}, "a few updates took longer than 120 s"),
    ],
)
def test_a_method_that_cannot_be_measured_is_left_out_and_the_others_are_not(process, end, why):
    started = process(**end)
    found = measure_rows(SPECS, "log.txt")
    assert found["broken"] == why
    assert {row for row, each in found.items() if isinstance(each, Measured)} == {"fine", "fast"}
    assert len(started) == 2
    assert all(child.closed for child in started)
    assert list(measure_rows(SPECS, "log.txt", at_once=2).items()) == list(found.items())
    assert [child.began for child in started[2:]] == [["fast", "fine"], ["broken"]]
    said = []
    estimates = measure_plan(SPECS, "log.txt", said.append)
    assert [(each.row, each.seed) for each in estimates] == [("fine", 0), ("fast", 0), ("fine", 1), ("fast", 1)]
    assert said == [f"broken: no estimate: {why}"]


def test_what_is_the_fault_of_no_method_is_an_error(process):
    process()
    unreadable = SPECS[0].model_copy(update={"method": "unreadable"})
    with pytest.raises(UsageError, match="the plan could not be measured: no images"):
        measure_rows([unreadable], "log.txt")
