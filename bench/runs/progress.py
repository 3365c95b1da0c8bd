"""Live progress on standard error: a line per finished cell, and on a terminal a bar for the run and one for all.

Not a terminal: plain lines only. Names come from users, so nothing is read as markup.
"""

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from bench.events import Event
from bench.runs.plan import Estimate, duration
from bench.spec import RunSpec, format_eps
from bench.text import plain

MOST_BARS = 8  # of single runs; a cluster has more


class Display:
    """Shows what happens to each run. ``estimates`` in ``begin`` feed the time that is left over all."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[text]}", markup=False),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._overall: TaskID | None = None
        self._bar: dict[str, TaskID] = {}  # of each run under way
        self._cells: dict[str, int] = {}
        self._quarter: dict[str, int] = {}
        self._training_left: dict[str, float] = {}
        self._estimates: dict[str, Estimate] = {}
        self._specs: list[RunSpec] = []
        self._slots = 1
        self._begun = self._ended = 0

    def __enter__(self) -> "Display":
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def line(self, text: str, style: str = "") -> None:
        """One line that stays."""
        self._bars.console.print(Text(plain(text), style=style), soft_wrap=True)

    def ask(self, question: Callable[[], bool]) -> bool:
        """The answer to a question on this terminal, which the bars leave alone meanwhile."""
        self._bars.stop()
        try:
            return question()
        finally:
            self._bars.start()

    def begin(self, specs: list[RunSpec], estimates: list[Estimate] | None, slots: int = 1) -> None:
        """These runs are about to be made, so many at a time."""
        self._specs, self._slots = specs, slots
        self._estimates = {f"{estimate.row}-s{estimate.seed}": estimate for estimate in estimates or ()}
        self._overall = self._bars.add_task(f"all {len(specs)} runs", total=1.0, text="")

    def skipped(self, spec: RunSpec, status: str) -> None:
        """The store has this run already."""
        self._begun += 1
        self._ended += 1
        self._estimates.pop(spec.name, None)
        self.line(f"{spec.name}: {status} before, not repeated", "dim")

    def started(self, spec: RunSpec) -> None:
        """A run begins, or goes on."""
        again = spec.name in self._cells
        self._cells[spec.name] = self._quarter[spec.name] = 0
        if again:
            self.line(f"{spec.name}: goes on", "bold")
            return
        self._begun += 1
        if len(self._bar) < MOST_BARS:
            self._bar[spec.name] = self._bars.add_task(spec.name, total=1.0, text="starting")
        self.line(f"{spec.name}: run {self._begun} of {len(self._specs)}, training for {spec.budget}", "bold")

    def event(self, spec: RunSpec, event: Event) -> None:
        """Something happened in a run: an event of the engine."""
        if event["event"] == "train":
            text = (
                f"loss {event['loss']:.4g}, {event['images_per_second']:.4g} images/s, "
                f"{duration(event['seconds_left'])} left"
            )
            self._training_left[spec.name] = event["seconds_left"]
            self._show(spec, event["progress"], "train " + text)
            quarter = int(event["progress"] * 4)
            if quarter > self._quarter.get(spec.name, 0) and not self.console.is_terminal:
                self._quarter[spec.name] = quarter
                self.line(f"{spec.name}: training {event['progress']:.0%}, {text}")
        elif event["event"] == "trained":
            self._training_left[spec.name] = 0.0
            self.line(f"{spec.name}: trained, {event['updates']} updates in {event['seconds']:.4g} s")
            for remark in event["remarks"]:
                self.line(f"{spec.name}: {remark}", "yellow")
        elif event["event"] == "damaged":
            self.line(f"{spec.name}: {event['message']}", "yellow")
        elif event["event"] == "probe":
            self._show(spec, 0.0, f"{event['protocol']}: fitting the probe")
        elif event["event"] == "attack":
            share = event["done"] / event["total"] if "done" in event else None
            text = event.get("message") or f"{event['done']} of {event['total']} images"
            self._show(spec, share, f"{event['protocol']} {event['attack']} {format_eps(event['eps'])}: {text}")
        elif event["event"] == "cell":
            self._cells[spec.name] = self._cells.get(spec.name, 0) + 1
            accuracy = event["correct"] / event["total"]
            what = f"{event['protocol']:<14} {event['attack']:<10} eps {format_eps(event['eps']):<7}"
            note = f"  ({event['note']})" if event["note"] else ""
            count = f"{event['correct']}/{event['total']}"
            self.line(f"{spec.name}: {what} {accuracy:>6.1%}  {count:<12} {event['seconds']:.3g} s{note}")

        elif event["event"] == "failed":
            self._cells[spec.name] = self._cells.get(spec.name, 0) + 1
            what = f"{event['protocol']} {event['attack']} eps {format_eps(event['eps'])}"
            self.line(f"{spec.name}: {what} failed: {event['message']}", "red")
        elif event["event"] == "curve":
            robust = f", {event['robust']:.1%} under PGD" if event["robust"] is not None else ""
            what = f"at {event['percent']} % of the budget {event['clean']:.1%} of held-out training images{robust}"
            self.line(f"{spec.name}: {what}")
            if event["alarm"]:
                self.line(f"{spec.name}: {event['alarm']}", "yellow")
        elif event["event"] == "audit":
            verdict, style = event["verdict"], {"PASS": "", "FLAG": "yellow"}.get(event["verdict"], "red")
            self.line(f"{spec.name}: {event['protocol']} audit {verdict} ({event['level']})", style)

    def ended(self, spec: RunSpec, status: str, message: str) -> None:
        """A run has ended, well or not."""
        self._ended += 1
        self._estimates.pop(spec.name, None)
        if message:
            self.line(f"{spec.name}: {status}: {message}", "yellow" if status == "finished" else "red")
        self._show(spec, 1.0, status)
        if spec.name in self._bar:
            self._bars.remove_task(self._bar.pop(spec.name))

    def _show(self, spec: RunSpec, share: float | None, text: str) -> None:
        if spec.name in self._bar:
            self._bars.update(self._bar[spec.name], completed=share, text=plain(text))
        if self._overall is not None:
            left = sum(self._left(name, estimate) for name, estimate in self._estimates.items()) / self._slots
            said = f", about {duration(left)} left" * bool(self._estimates)
            done = self._ended / max(1, len(self._specs))
            self._bars.update(self._overall, completed=done, text=f"{self._ended} ended{said}")

    def _left(self, name: str, estimate: Estimate) -> float:
        """Expected seconds of a run that has not ended."""
        training = self._training_left.get(name, estimate.train_seconds)
        return training + estimate.evaluate_seconds * max(0.0, 1 - self._cells.get(name, 0) / max(estimate.cells, 1))
