"""The clock probe: how long it takes, what it finds under a fake clock, whom it accuses, what it must not touch."""

import io
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from bench.device import clock_probe as calibration
from bench.device.clock_probe import Load, measure, probe_seconds, probed, read_machine, thread_gain
from bench.device.nvml import other_processes, throttling
from bench.fairness import complaint, disturbed, remarks, stalled, too_few
from bench.record import TrainResult
from bench.runs.progress import Display
from bench.spec import Budget, DataSpec, RunSpec

CPU = torch.device("cpu")
NOTHING = {name: 0 for name, field in TrainResult.model_fields.items() if field.is_required()}


class Machine:
    """A fake clock that moves only while a unit of the load is done, or while the device is waited for."""

    def __init__(self, durations, waiting=0.0):
        self.nanoseconds, self.units = 10**15, 0
        self.waiting, self._durations = waiting, iter(durations)

    def load(self):
        self.units += 1
        self.nanoseconds += round(next(self._durations) * 1e9)

    def synchronize(self):
        self.nanoseconds += round(self.waiting * 1e9)

    def now(self):
        return self.nanoseconds


def constant(duration, first=5.0):
    yield first
    while True:
        yield duration


def trained(before, after):
    return TrainResult.model_validate(NOTHING | {"status": "finished", "calibration": (before, after)})


def reading(unit, **others):
    return {"unit": unit, "load_average": 0.5, "processes": None, "throttling": None} | others


# ---------------------------------------------------------------- how long


@pytest.mark.parametrize(
    ("budget", "seconds"),
    [("10s", 0.5), ("50s", 0.5), ("600s", 6.0), ("50m", 30.0), ("2h", 30.0), ("20ep", None), ("5000up", None)],
)
def test_a_probe_takes_one_percent_between_half_a_second_and_thirty(budget, seconds):
    assert probe_seconds(Budget.parse(budget)) == (None if seconds is None else pytest.approx(seconds, rel=1e-12))


def test_the_load_is_repeated_for_the_time_given_and_the_first_unit_does_not_count():
    machine = Machine(constant(0.01))
    assert measure(machine.load, 0.5, now=machine.now) == pytest.approx(0.01)
    assert machine.units == 1 + 50


def test_waiting_for_the_device_belongs_to_the_unit():
    machine = Machine(constant(0.001), waiting=0.009)
    assert measure(machine.load, 0.5, now=machine.now, synchronize=machine.synchronize) == pytest.approx(0.01)


def test_a_few_slow_units_do_not_move_the_median():
    machine = Machine([9.0] + [0.01, 0.01, 0.07] * 20)
    assert measure(machine.load, 0.5, now=machine.now) == pytest.approx(0.01)


def test_a_unit_longer_than_the_probe_is_measured_once():
    machine = Machine(constant(2.0))
    assert measure(machine.load, 0.5, now=machine.now) == 2.0
    assert machine.units == 2


def test_a_stop_cuts_the_probe_short_and_leaves_it_unknown():
    machine = Machine(constant(0.01))
    assert measure(machine.load, 30.0, now=machine.now, stop=lambda: machine.units > 3) is None
    assert machine.units == 4


# ---------------------------------------------------------------- the load


def test_a_unit_is_the_same_finite_work_every_time_and_multiplies_matrices(monkeypatch):
    load = Load(CPU, "fp32")
    made = []
    clamp = torch.Tensor.clamp
    monkeypatch.setattr(torch.Tensor, "clamp", lambda x, *ends: made.append(clamp(x, *ends)) or made[-1])
    load()
    load()
    assert len(made) == 2 * calibration.PRODUCTS
    assert torch.equal(made[0], made[calibration.PRODUCTS])
    last = made[-1]
    assert last.abs().max() <= 1
    assert last.std() > 0.1  # neither dies out nor sticks to the ends
    assert last.dtype == torch.float32


def test_the_precision_is_that_of_the_run(monkeypatch):
    kinds = []
    clamp = torch.Tensor.clamp
    monkeypatch.setattr(torch.Tensor, "clamp", lambda x, *ends: kinds.append(x.dtype) or clamp(x, *ends))
    Load(CPU, "bf16")()
    assert set(kinds) == {torch.bfloat16}


def test_a_reading_touches_no_global_generator_and_is_a_checkpoint_of_plain_numbers():
    state = torch.get_rng_state()
    found = read_machine(Budget.parse("1s"), CPU, "fp32", now=Machine([]).now, stop=lambda: True)
    assert found is None
    ticks = iter(range(10**15, 10**16, 10**8))
    found = read_machine(Budget.parse("1s"), CPU, "fp32", now=lambda: next(ticks))
    assert torch.equal(torch.get_rng_state(), state)
    assert found["unit"] == pytest.approx(0.1)
    assert found["load_average"] >= 0
    assert (found["processes"], found["throttling"]) == (None, None)  # of a GPU: unknown here, never 0


@pytest.mark.parametrize("budget", ["20ep", "5000up"])
def test_a_budget_that_is_not_in_seconds_is_not_probed(budget):
    def never():
        raise AssertionError("the clock was read")

    assert read_machine(Budget.parse(budget), CPU, "fp32", now=never) is None


# ---------------------------------------------------------------- what a GPU tells


@pytest.fixture
def nvml(monkeypatch):
    """A driver that answers what a test puts into it; a missing answer raises, as on a GPU that does not know."""
    answers = {}
    fake = SimpleNamespace(
        nvmlDeviceGetComputeRunningProcesses=lambda handle: answers["processes"],
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: answers["reasons"],
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr("bench.device.nvml.nvml_handle", lambda device: "handle")
    return answers


@pytest.mark.parametrize(("listed", "others"), [(["us"], 0), (["us", "them"], 1), ([], None)])
def test_this_process_is_none_of_the_others_and_an_empty_list_tells_nothing(nvml, listed, others):
    nvml["processes"] = listed
    assert other_processes(CPU) == others


@pytest.mark.parametrize(
    ("bits", "names"), [(0, []), (0x1 | 0x2, []), (0x4 | 0x40, ["power cap", "hardware thermal slowdown"])]
)
def test_idling_and_chosen_clocks_throttle_nothing(nvml, bits, names):
    nvml["reasons"] = bits
    assert throttling(CPU) == names


def test_a_driver_that_does_not_know_is_unknown_and_not_zero(nvml):
    assert (other_processes(CPU), throttling(CPU)) == (None, None)


# ---------------------------------------------------------------- the judgement


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(1.0, 1.10, True), (1.0, 0.90, True), (1.0, 1.02, False), (1.0, 0.98, False), (1.0, 1.031, True)],
)  # fmt: skip
def test_a_machine_that_changed_by_more_than_three_percent_is_disturbed(before, after, expected):
    assert disturbed(trained(before, after)) is expected
    assert bool(complaint(trained(before, after))) is expected


@pytest.mark.parametrize(
    ("before", "after", "median", "expected"),
    [(1.0, 1.0, 1.0, False), (1.0, 1.0, 0.96, True), (1.0, 1.0, 1.04, True), (1.0, 1.02, 0.98, True),
     (1.02, 1.0, 0.98, True), (1.0, 1.02, 1.01, False), (1.0, 1.10, 1.05, True)],
)  # fmt: skip
def test_either_reading_may_be_off_the_machines_median(before, after, median, expected):
    assert disturbed(trained(before, after), median) is expected


def test_without_a_probe_nothing_is_known():
    result = TrainResult.model_validate(NOTHING | {"status": "finished"})
    assert (result.calibration, disturbed(result), disturbed(result, 1.0), complaint(result)) == (None, None, None, "")


def test_the_complaint_says_by_how_much_and_what_to_do():
    advice = "after the training than before; run it again for a fair time"
    assert complaint(trained(1.0, 1.12)) == f"disturbed: this machine was 12 % slower {advice}"
    assert complaint(trained(0.010, 0.008)) == f"disturbed: this machine was 20 % faster {advice}"


# ---------------------------------------------------------------- threads that stall, budgets that hold too little


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("together", "alone", "gain"), [(0.005, 0.010, 2.0), (0.040, 0.010, 0.25)])
def test_the_gain_of_threads_is_the_pace_of_all_over_that_of_one(two_threads, monkeypatch, together, alone, gain):
    machine = Machine([])
    monkeypatch.setattr(calibration, "Load", lambda device, precision: machine.load)
    pace = {2: together, 1: alone}
    monkeypatch.setattr(machine, "_durations", iter(lambda: pace[torch.get_num_threads()], None))
    assert thread_gain(CPU, now=machine.now) == pytest.approx(gain)
    assert torch.get_num_threads() == 2
    assert thread_gain(CPU, now=machine.now, stop=lambda: True) is None


def test_one_thread_and_a_gpu_have_no_gain(two_threads):
    assert thread_gain(torch.device("cuda")) is None
    torch.set_num_threads(1)
    assert thread_gain(CPU) is None


@pytest.mark.parametrize(
    ("gain", "updates", "budget", "words"),
    [
        (None, 60, "10s", []),
        (1.4, 23, "300up", []),
        (1.4, 23, "10s", ["23 updates in 10s: too few for this method to learn", "--budget 300up"]),
        (0.24, 300, "300up", ["stalled: 2 threads are 0.2 times as fast as one", "use --threads 1"]),
    ],
)
def test_a_run_says_that_its_threads_stalled_and_that_its_updates_are_too_few(gain, updates, budget, words):
    result = TrainResult.model_validate(NOTHING | {"status": "finished", "updates": updates, "thread_gain": gain})
    said = remarks(result, Budget.parse(budget), 2)
    assert len(said) == bool(words)
    assert all(word in said[0] for word in words)
    assert (stalled(result), too_few(result, Budget.parse(budget))) == (gain == 0.24, (updates, budget) == (23, "10s"))


# ---------------------------------------------------------------- the two readings of a run


def test_the_result_keeps_both_readings():
    plain = TrainResult.model_validate(NOTHING | {"status": "finished", "updates": 7})
    before = reading(1.0, processes=1, throttling=["power cap"])
    after = reading(1.1, load_average=9.0, processes=0, throttling=["hardware slowdown"])
    result = probed(plain, before, after)
    assert result.calibration == (1.0, 1.1)
    assert result.load_average == 0.5  # at the start: this run itself is not in it
    assert result.gpu_processes == 1
    assert result.throttling == ("hardware slowdown", "power cap")
    assert result.updates == 7
    assert TrainResult.model_validate_json(result.model_dump_json()) == result


def test_what_is_unknown_stays_unknown():
    plain = TrainResult.model_validate(NOTHING | {"status": "finished"})
    result = probed(plain, reading(1.0), reading(1.0))
    assert (result.gpu_processes, result.throttling) == (None, None)
    quiet = probed(plain, reading(1.0, processes=0, throttling=[]), reading(1.0))
    assert (quiet.gpu_processes, quiet.throttling) == (0, ())
    assert probed(plain, None, reading(1.0)) == probed(plain, reading(1.0), None) == plain


def test_the_share_of_a_budget_in_time_is_continuous():
    """No jump at the two ends: 50 s and 3,000 s."""
    for edge in (50.0, 3000.0):
        low, high = (probe_seconds(Budget(amount=edge * side, unit="seconds")) for side in (0.999, 1.001))
        assert math.isclose(low, high, rel_tol=0.003)


# ---------------------------------------------------------------- where a user reads it


def test_the_terminal_says_it_beside_the_end_of_the_training():
    spec = RunSpec(method="emp_ssl", data=DataSpec(name="digits"), budget=Budget.parse("10s"))
    event = {"event": "trained", "updates": 3, "seconds": 9.9, "loss": 0.1, "remarks": []}
    text = io.StringIO()
    display = Display(Console(file=text, width=200))
    display.event(spec, event)
    assert text.getvalue() == "emp_ssl-s0: trained, 3 updates in 9.9 s\n"
    display.event(spec, event | {"remarks": [complaint(trained(1.0, 1.12))]})
    assert text.getvalue().endswith(f"emp_ssl-s0: {complaint(trained(1.0, 1.12))}\n")
