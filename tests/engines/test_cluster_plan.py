"""The plan on a cluster: the file at the door, times by speed, the schedule in virtual time, the bill, the scaling."""

import itertools
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.cli import main
from bench.commands.show_cluster import bar
from bench.engines.cluster import Cluster, Nodes, VirtualCluster, all_gpus, load_cluster
from bench.engines.cluster_plan import bill, faster, place, plan_cluster, scaling, with_preemptions
from bench.engines.queue import Job, Schedule
from bench.runs import measuring
from bench.runs.plan import START_SECONDS, Measured, estimate
from bench.spec import Budget, DataSpec, EvalSpec, RunSpec, UsageError
from tests.simulation import FailingCluster, Rates

ROOT = Path(__file__).parents[2]
NODE = '[[nodes]]\nname = "a"\ngpus = 2\ngpu = "A100"\nspeed = 4\n'
DIGITS = ["--data", "digits", "--device", "cpu", "--methods", "simclr,simclr_adv"]


def nodes(name: str = "a", gpus: int = 1, speed: float = 1, **more: object) -> Nodes:
    return Nodes.model_validate({"name": name, "gpus": gpus, "gpu": f"GPU-{name}", "speed": speed, **more})


def measured(row: str, updates: int | None = None) -> Measured:
    """A machine on which an update takes 0.5 s and a pass of n images 1 ms + n * 0.1 ms."""
    passes = dict.fromkeys(("linear", "multi_patch"), (1e-3, 1e-4))
    return Measured(
        row=row, adversary="pgd", updates=updates, update_seconds=0.5, warm_up_seconds=2, passes=passes,
        train_images=1500, test_images=300, peak_memory_bytes=2**30,
    )  # fmt: skip


def runs(budget: str, methods: int = 2, seeds: int = 2) -> list[RunSpec]:
    spec = EvalSpec(main_eps=0.1, eps=(0.1,))
    return [
        RunSpec(method=f"m{m}", data=DataSpec(name="digits"), budget=Budget.parse(budget), seed=seed, eval=spec)
        for seed in range(seeds)
        for m in range(methods)
    ]


class TestTheFile:
    def load(self, tmp_path: Path, text: str) -> Cluster:
        (tmp_path / "spec.toml").write_text(text)
        return load_cluster(tmp_path / "spec.toml")

    def test_what_is_not_given_has_its_default(self, tmp_path: Path) -> None:
        cluster = self.load(tmp_path, NODE)
        assert (cluster.currency, cluster.checkpoint_seconds, cluster.models) == ("", 300, ["A100"])
        assert [(gpu.node, gpu.place, gpu.ready) for gpu in all_gpus(cluster.nodes)] == [("a", 0, 0), ("a", 1, 0)]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "expected at least one [[nodes]]"),
            ("nodes = []", "expected at least one [[nodes]]"),
            ("[[node]]\nname = 'a'", "unknown key 'node'; did you mean 'nodes'"),
            ("nodes = 3", "nodes: input should be a valid tuple, got 3"),
            (NODE + "sped = 1", "[[nodes]] 1: unknown key 'sped'; did you mean 'speed'"),
            ("currancy = 'EUR'\n" + NODE, "unknown key 'currancy'; did you mean 'currency'"),
            (NODE.replace("gpus = 2", "gpus = 0"), "gpus: input should be greater than or equal to 1, got 0"),
            (NODE.replace("gpus = 2\n", ""), "gpus: field required"),
            (NODE + "count = 0", "count: input should be greater than or equal to 1, got 0"),
            (NODE + "count = 1000000", "at most 100000 GPUs"),
            (NODE.replace("speed = 4", "speed = 0"), "speed: input should be greater than or equal to 0.0001, got 0"),
            (NODE.replace("speed = 4", "speed = nan"), "speed: input should be"),
            (NODE + "price_per_hour = -1", "price_per_hour: input should be greater than or equal to 0, got -1"),
            (NODE + "price_per_hour = 1", "expected the currency of the prices"),
            (NODE + NODE, "different names, got a, a"),
            ("checkpoint_seconds = 0\n" + NODE, "checkpoint_seconds: input should be greater than 0"),
            ("[[nodes", "is not TOML"),
        ],
    )
    def test_a_mistake_is_one_line(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(UsageError, match=re.escape(message)) as caught:
            self.load(tmp_path, text)
        assert str(tmp_path / "spec.toml") in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_on_the_command_line_it_ends_with_2_before_anything_is_measured(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as leaving:
            main(["plan", *DIGITS, "--budget", "2up", "--cluster", str(tmp_path / "none.toml")])
        assert leaving.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines == [f"bench: cannot read the cluster {tmp_path / 'none.toml'}: No such file or directory"]

    def test_the_example_of_the_documentation_is_one(self, tmp_path: Path) -> None:
        text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
        (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
        cluster = self.load(tmp_path, example)
        assert all(kind.price_per_hour > 0 for kind in cluster.nodes)
        for key in (*Nodes.model_fields, *Cluster.model_fields):
            assert f"`{key}`" in text or f"`[[{key}]]`" in text, key


class TestTimes:
    @pytest.mark.parametrize("speed", [0.5, 1, 20])
    def test_a_budget_in_time_takes_its_time_everywhere(self, speed: float) -> None:
        (spec,) = runs("100s", 1, 1)
        on = estimate(spec, faster(measured("m0"), speed))
        assert on.train_seconds - on.warm_up_seconds == 100
        assert on.warm_up_seconds == 2 / speed

    def test_updates_and_evaluation_scale_and_the_start_does_not(self) -> None:
        """From 60 updates on the expected robustness is the same, and so is the number of passes."""
        (spec,) = runs("100up", 1, 1)
        here, there = (estimate(spec, faster(measured("m0", 100), speed)) for speed in (1, 8))
        assert there.train_seconds == pytest.approx(52 / 8)
        assert there.evaluate_seconds - START_SECONDS == pytest.approx((here.evaluate_seconds - START_SECONDS) / 8)

    def test_more_updates_in_the_same_time_make_a_dearer_evaluation(self) -> None:
        """In 4 s one machine makes 8 updates and one 20 times as fast 160: what stands is attacked to the end."""
        (spec,) = runs("4s", 1, 1)
        slow, fast = (estimate(spec, faster(measured("m0"), speed)) for speed in (1, 20))
        assert fast.evaluate_seconds - START_SECONDS > 2 * (slow.evaluate_seconds - START_SECONDS) / 20

    def test_preemptions_cost_what_the_simulation_finds(self) -> None:
        """1,000 hours of work on a node that is lost twice an hour, for 2 minutes, with checkpoints every 5."""
        jobs = [Job(f"m-s{seed}", seed) for seed in range(1000)]
        rates = Rates(node_losses=2, node_back=120, notice=0, report=0, overhead=0, checkpoint=300)
        cluster = FailingCluster(jobs, dict.fromkeys((job.name for job in jobs), 3600.0), 1, 1, rates, tries=10**6)
        cluster.run()
        expected = with_preemptions(3600, 2, 120, 300)
        assert cluster.now / 1000 == pytest.approx(expected, rel=0.02)
        assert expected > 1.1 * 3600

    def test_without_preemptions_nothing_is_added(self) -> None:
        assert with_preemptions(1234.5, 0, 600, 300) == 1234.5
        assert with_preemptions(1234.5, 1e-9, 600, 300) == pytest.approx(1234.5)


class TestTheSchedule:
    def test_one_gpu_makes_one_run_after_the_other_in_the_order_of_the_scheduler(self) -> None:
        jobs = [Job("a-s0", 0, 1), Job("b-s0", 0, 5), Job("a-s1", 1, 1)]
        found = place(jobs, all_gpus([nodes()]), {"a": {"a-s0": 1, "b-s0": 5, "a-s1": 1}})
        assert [(each.run, each.start, each.end) for each in found] == [
            ("b-s0", 0, 5), ("a-s0", 5, 6), ("a-s1", 6, 7),
        ]  # fmt: skip

    def test_the_fastest_free_gpu_is_taken_and_a_late_node_from_its_time_on(self) -> None:
        """Two kinds at 0, where the faster takes the longest; the third starts at 2 + 1."""
        kinds = [nodes("slow"), nodes("fast", speed=2), nodes("late", available_from_seconds=2, start_seconds=1)]
        jobs = [Job(f"m{n}-s0", 0, 10 - n) for n in range(4)]
        times = {kind.name: {f"m{n}-s0": 8 / kind.speed for n in range(4)} for kind in kinds}
        found = place(jobs, all_gpus(kinds), times)
        assert {each.run: (each.gpu.node, each.start, each.end) for each in found} == {
            "m0-s0": ("fast", 0, 4), "m1-s0": ("slow", 0, 8), "m2-s0": ("late", 3, 11), "m3-s0": ("fast", 4, 8),
        }  # fmt: skip

    def test_jobs_without_a_gpu_are_an_error(self) -> None:
        with pytest.raises(RuntimeError, match="1 jobs wait"):
            VirtualCluster(Schedule([Job("a", 0)], 1), [], lambda name, gpu: 1).run()

    @given(st.lists(st.floats(0.1, 100), min_size=1, max_size=30), st.integers(1, 5), st.integers(1, 3))
    def test_every_run_has_a_gpu_to_itself_and_ends_within_twice_the_bound(
        self, times: list[float], count: int, gpus: int
    ) -> None:
        jobs = [Job(f"m-s{place}", 0, each) for place, each in enumerate(times)]
        kinds = [nodes(gpus=gpus, count=count)]
        found = place(jobs, all_gpus(kinds), {"a": {job.name: job.seconds for job in jobs}})
        assert sorted(each.run for each in found) == sorted(job.name for job in jobs)
        for gpu in {each.gpu for each in found}:
            ends = [(each.start, each.end) for each in found if each.gpu is gpu]
            assert all(before[1] <= after[0] for before, after in itertools.pairwise(ends))
        bound = max(max(times), sum(times) / (count * gpus))
        makespan = max(each.end for each in found)
        assert bound * (1 - 1e-9) <= makespan <= 2 * bound
        found_bill = bill(found, kinds, count * gpus)
        assert found_bill.utilization == pytest.approx(sum(times) / (makespan * count * gpus))


class TestTheBill:
    def test_nodes_are_paid_from_when_they_are_there_to_the_end_of_all(self) -> None:
        """Makespan 3 h: two nodes of 2 GPUs for 3 h at 10, one of 1 GPU for 2 h at 7; busy for 6 of 14 GPU-hours."""
        kinds = [nodes(gpus=2, count=2, price_per_hour=10)]
        kinds.append(nodes("b", price_per_hour=7, available_from_seconds=3600, start_seconds=600))
        jobs = [Job("a-s0", 0, 2), Job("a-s1", 1, 1)]
        found = place(jobs, all_gpus(kinds), {key: dict.fromkeys(("a-s0", "a-s1"), 3 * 3600.0) for key in "ab"})
        paid = bill(found, kinds, 5)
        assert (paid.makespan_seconds, paid.gpu_hours, paid.cost) == (3 * 3600, 14, 74)
        assert paid.utilization == pytest.approx(6 / 14)

    def test_a_node_that_comes_too_late_is_not_paid(self) -> None:
        kinds = [nodes(), nodes("b", price_per_hour=7, available_from_seconds=7200)]
        found = place([Job("a-s0", 0)], all_gpus(kinds), {"a": {"a-s0": 3600}})
        assert (bill(found, kinds, 2).gpu_hours, bill(found, kinds, 2).cost) == (1, 0)


class TestScaling:
    def test_equal_runs_need_a_gpu_each(self) -> None:
        """12 runs of 1 h after a start of 6 minutes, on nodes of 4 GPUs at 8 an hour."""
        kind = nodes(gpus=4, price_per_hour=8, start_seconds=360)
        jobs = [Job(f"m-s{n}", n) for n in range(12)]
        found = scaling(kind, jobs, {"a": {job.name: 3600 for job in jobs}})
        assert (found.least_seconds, found.enough_gpus) == (3960, 12)
        assert [(each.gpus, each.makespan_seconds / 3600) for each in found.bills] == [
            (1, 12.1), (2, 6.1), (4, 3.1), (8, 2.1), (12, 1.1),
        ]  # fmt: skip
        assert [each.cost for each in found.bills] == pytest.approx([8 * 12.1, 8 * 6.1, 8 * 3.1, 16 * 2.1, 24 * 1.1])

    def test_beyond_the_longest_run_more_gpus_are_idle(self) -> None:
        """One run of 10 and twenty of 1: two more GPUs hold the twenty."""
        jobs = [Job("long-s0", 0, 10), *(Job(f"m-s{n}", 0, 1) for n in range(20))]
        found = scaling(nodes(), jobs, {"a": {job.name: job.seconds for job in jobs}})
        assert (found.longest_run, found.least_seconds, found.enough_gpus) == ("long-s0", 10, 3)

    @given(st.lists(st.integers(1, 50), min_size=1, max_size=12))
    def test_enough_is_the_first_that_is_near_the_least(self, times: list[int]) -> None:
        jobs = [Job(f"m-s{n}", n, each) for n, each in enumerate(times)]
        seconds = {"a": {job.name: job.seconds for job in jobs}}
        makespans = [
            max(each.end for each in place(jobs, all_gpus([nodes(count=count)]), seconds))
            for count in range(1, len(jobs) + 1)
        ]
        assert makespans == sorted(makespans, reverse=True)
        first = next(n for n, makespan in enumerate(makespans, 1) if makespan <= 1.01 * max(times))
        assert scaling(nodes(), jobs, seconds).enough_gpus == first


class TestThePlan:
    def test_a_mixed_cluster_warns_and_is_scaled_kind_by_kind(self) -> None:
        cluster = Cluster(nodes=(nodes("a", speed=2), nodes("b", count=9)), currency="EUR")
        plan = plan_cluster(cluster, runs("10s"), {row: measured(row) for row in ("m0", "m1")})
        assert [each.kind.name for each in plan.scalings] == ["a", "b"]
        assert "mixes GPU models (GPU-a, GPU-b)" in plan.warnings[0]
        assert "makes more updates" in plan.warnings[0]
        assert plan.warnings[1] == "6 of 10 GPUs never get a run"

    def test_one_model_and_a_use_for_every_gpu_is_nothing_to_warn_of(self) -> None:
        plan = plan_cluster(Cluster(nodes=(nodes(gpus=4),)), runs("10up"), {r: measured(r, 10) for r in ("m0", "m1")})
        assert plan.warnings == []
        assert math.isclose(plan.bill.makespan_seconds, plan.scalings[0].least_seconds)

    def test_a_run_that_outlives_its_tries_is_named(self) -> None:
        cluster = Cluster(nodes=(nodes(preemptions_per_hour=5),))
        plan = plan_cluster(cluster, runs("2h", 1, 1), {"m0": measured("m0")})
        assert "given up after 10" in plan.warnings[-1]

    def test_a_bar_shows_start_and_idle(self) -> None:
        """A run is at least a letter."""
        jobs = [Job("a-s0", 0), Job("b-s0", 1)]
        found = place(jobs, all_gpus([nodes(start_seconds=2)]), {"a": {"a-s0": 4, "b-s0": 2}})
        assert bar(found, {"a-s0": "a0", "b-s0": "b0"}, 10, 10) == "..a0--b0.."
        assert bar(found, {"a-s0": "a0", "b-s0": "b0"}, 80, 10) == "ab........"

    def test_the_command_prints_it_and_gives_it_as_json(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is measured is given here; the runs, the file and the printing are real."""
        rows = ("simclr", "simclr_adv")
        found = {
            row: measured(row, 20).model_copy(
                update={"passes": dict.fromkeys(("linear", "multi_patch", "published_eval"), (1e-3, 1e-4))}
            )
            for row in rows
        }
        monkeypatch.setattr(measuring, "measure_rows", lambda specs, log, jobs: found)
        file = tmp_path / "spec.toml"
        file.write_text('currency = "EUR"\n' + NODE + "price_per_hour = 36")
        command = ["plan", *DIGITS, "--budget", "20up", "--seeds", "2", "--cluster", str(file)]
        for more in ([], ["--json"]):
            with pytest.raises(SystemExit) as leaving:
                main([*command, *more])
            assert leaving.value.code == 0
        out = capsys.readouterr().out
        text, document = out[: out.index("\n{")], json.loads(out[out.index("\n{") :])
        cluster = document["cluster"]
        assert len(cluster["schedule"]) == 4
        assert cluster["makespan_seconds"] == max(each["end_seconds"] for each in cluster["schedule"])
        assert cluster["cost"] == pytest.approx(36 * cluster["makespan_seconds"] / 3600)
        assert (cluster["currency"], cluster["gpus"], cluster["scaling"][0]["enough_gpus"]) == ("EUR", 2, 4)
        assert "a simclr, b simclr_adv" in text
        assert "4 runs on 2 GPUs" in text
        assert f"cost {cluster['cost']:.2f} EUR" in text
        assert f"measured here: {cluster['measured_on']}" in text
        assert "b0-" in text
