"""``make perf``: its measurements on a small encoder, its arithmetic, its errors; no bound on a speed."""

import json

import pytest
import torch

from bench.spec import Budget, UsageError
from tests import perf

CPU = torch.device("cpu")
KEYS = {"name", "ratio", "ratio_lo", "ratio_hi", "per_second", "peak_memory_ratio"}


def command(*arguments):
    """Exit code of the command in this process."""
    return perf.main(["--quick", "--repeats", "2", "--device", "cpu", "--threads", "1", *arguments])


@pytest.fixture
def without_memory(monkeypatch):
    """No fresh processes, which take seconds to start."""
    monkeypatch.setattr(perf, "memory_ratio", lambda *arguments: 0.25)


@pytest.mark.ci
def test_json_has_one_row_for_each_name(capsys, without_memory):
    assert command("--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(perf.NAMES)
    for row in rows:
        assert set(row) == KEYS
        assert 0 < row["ratio_lo"] <= row["ratio"] <= row["ratio_hi"]
        assert row["per_second"] > 0


@pytest.mark.slow
def test_the_table_names_the_threads_and_what_was_asked_for(capsys, without_memory):
    assert command("--only", "coding_rate,emp_pgd_step", "--precision", "bf16") == 0
    out = capsys.readouterr().out
    assert "bf16 on cpu, 1 CPU threads, 2 repeats" in out
    rows = {line.split("│")[1].strip(): line.split("│")[2:6] for line in out.splitlines() if line.startswith("│")}
    assert set(rows) == {"coding_rate", "emp_pgd_step"}
    assert rows["coding_rate"][2].strip() == "0.25"
    assert rows["coding_rate"][3].strip() == ""
    assert rows["emp_pgd_step"][3].strip().endswith(" %")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "coding_rat"], "unknown measurement 'coding_rat'; did you mean 'coding_rate'?"),
        (["--repeats", "0"], "expected at least 1 repeat, got 0"),
        (["--precision", "fp8"], "'fp8' is not one of"),
        (["--device", "tpu"], "expected a device"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert command(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_sides_take_turns_and_short_work_is_repeated(monkeypatch):
    """A fake clock: the fast side takes 0.05 s, the slow one 0.5 s."""
    now, order = [0.0], []

    def work(name, seconds):
        def run():
            now[0] += seconds
            order.append(name)

        return perf.Work(run, 1)

    monkeypatch.setattr(perf.time, "perf_counter", lambda: now[0])
    fast, slow = perf.interleaved(work("f", 0.05), work("s", 0.5), CPU, 3)
    assert fast == pytest.approx([0.05] * 3)
    assert slow == pytest.approx([0.5] * 3)
    assert "".join(order) == "fs" + 3 * "ffffs"


@pytest.mark.parametrize("name", perf.STEPS)
def test_both_sides_step_to_the_same_weights(name):
    """What is compared is the same work: one step of each side, from the same weights and views."""
    size = perf.QUICK
    settings = size.settings | {"batch": size.batches[name]}
    methods = [perf.build_method(perf.STEPS[name], size.encoder, settings).double() for _ in range(2)]
    config = methods[0].config
    generator = torch.Generator().manual_seed(0)
    views = torch.rand(config.views, config.batch, 3, 8, 8, generator=generator, dtype=torch.float64)
    start = [p.detach().clone() for p in methods[0].parameters()]
    perf.fast_step(methods[0], views, CPU, "fp32")()
    perf.textbook_step(methods[1], views, CPU)()
    torch.testing.assert_close(methods[0].state_dict(), methods[1].state_dict(), rtol=1e-9, atol=1e-9)
    assert not any(torch.equal(a, b) for a, b in zip(start, methods[0].parameters(), strict=True) if a.ndim > 1)


@pytest.mark.slow
def test_memory_of_a_fresh_process_sees_only_what_the_step_takes(monkeypatch):
    """The coding rate of 16 views, 100 images: the textbook keeps 16 matrices of 4 MiB and more."""
    held = torch.zeros(2**28, dtype=torch.uint8)  # of this process, which is no matter
    ratio = perf.memory_ratio("coding_rate", CPU, "fp32", quick=False)
    assert held.numel() == 2**28
    assert ratio is not None
    assert 0 < ratio < 0.6


@pytest.mark.parametrize(
    ("method", "settings", "budget", "updates"),
    [
        ("cf_amc_ssl", {"batch": 100}, "10ep", 15_000),
        ("emp_ssl_adv", {"batch": 128}, "30ep", 11_700),
        ("simclr_adv", {"batch": 512}, "500ep", 48_500),
        ("simclr_free", {"batch": 512}, "167ep", 48_597),
    ],
)
def test_updates_of_the_papers_rows(method, settings, budget, updates):
    """The counts that follow from the released code's batch sizes and the table's epochs."""
    small = {"feature_width": 8, "hidden_width": 8, "embedding_width": 8}
    assert perf.row_updates(Budget.parse(budget), perf.build_method(method, "resnet8", settings | small)) == updates


@pytest.mark.ci
def test_rows_are_projected_from_real_updates():
    small = {"feature_width": 8, "hidden_width": 8, "embedding_width": 8, "batch": 4, "views": 2}
    projected = list(perf.project_paper(CPU, "fp32", 1, "resnet8", **small))
    assert len(projected) == 7
    for each in projected:
        assert each.minutes == pytest.approx(each.updates / each.updates_per_second / 60)
    with pytest.raises(UsageError, match="at least 1 update, got 0"):
        next(perf.project_paper(CPU, "fp32", 0))
