"""The plan on a cluster: the file at the door, times by speed, bounds beside a simulation, the bill, the scaling."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.cli import main
from bench.engines.cluster import Cluster, Nodes, load_cluster
from bench.engines.cluster_plan import bill, bounds, faster, plan_cluster, scaling, with_preemptions
from bench.engines.queue import Job, Schedule
from bench.runs import measuring
from bench.runs.plan import START_SECONDS, Measured, estimate
from bench.spec import Budget, DataSpec, EvalSpec, RunSpec, UsageError
from tests.simulation import FailingCluster, Rates, VirtualCluster, all_gpus

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
        assert [(kind.count, kind.gpus, kind.ready_seconds) for kind in cluster.nodes] == [(1, 2, 0)]

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


def makespan(kinds: list[Nodes], seconds: list[list[float]]) -> float:
    """What the scheduler makes of these runs in virtual time; by kind, then by run, as ``bounds`` has them."""
    jobs = [Job(f"m-s{place}", 0, each) for place, each in enumerate(seconds[0])]
    names = [job.name for job in jobs]
    own = {kind.name: dict(zip(names, each, strict=True)) for kind, each in zip(kinds, seconds, strict=True)}
    gpus = all_gpus(kinds)
    cluster = VirtualCluster(Schedule(jobs, len(gpus)), gpus, lambda name, gpu: own[gpu.kind.name][name])
    cluster.run()
    return cluster.now


class TestTheBounds:
    def test_of_one_kind_by_hand(self) -> None:
        """6 + 4 + 2 hours on two GPUs that start after one: 1 + 12 / 2, or the longest last, 1 + 6 / 2 + 6."""
        found = bounds([nodes(start_seconds=1)], [2], [[6, 4, 2]])
        assert (found.gpus, found.least.makespan_seconds, found.most.makespan_seconds) == (2, 7, 10)
        assert bounds([nodes()], [2], [[6, 1, 1]]).least.makespan_seconds == 6  # the longest run alone

    def test_of_two_kinds_by_hand(self) -> None:
        """Three runs of 8 s, or 4 on the fast GPU, which is there from 2 on: 12 = 2 + 2 * 5, and 8 + (16 + 2) / 2."""
        found = bounds([nodes(), nodes("fast", available_from_seconds=2)], [1, 1], [[8] * 3, [4] * 3])
        assert (found.least.makespan_seconds, found.most.makespan_seconds) == (7, 17)

    @given(
        st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)), min_size=1, max_size=30),
        st.integers(1, 5),
        st.integers(1, 3),
        st.floats(0, 50),
    )
    def test_what_the_scheduler_does_lies_between(
        self, times: list[tuple[float, float]], count: int, gpus: int, late: float
    ) -> None:
        kinds = [nodes(count=count, gpus=gpus), nodes("b", speed=2, available_from_seconds=late)]
        for own in (kinds[:1], kinds[1:], kinds):
            seconds = [[run[kind.name == "b"] for run in times] for kind in own]
            found, simulated = bounds(own, [kind.count * kind.gpus for kind in own], seconds), makespan(own, seconds)
            assert found.least.makespan_seconds * (1 - 1e-9) <= simulated
            assert simulated <= found.most.makespan_seconds * (1 + 1e-9)


class TestTheBill:
    def test_nodes_are_paid_from_when_they_are_there_to_the_end_of_all(self) -> None:
        """Makespan 3 h: two nodes of 2 GPUs for 3 h at 10, one of 1 GPU for 2 h at 7."""
        kinds = [nodes(gpus=2, count=2, price_per_hour=10)]
        kinds.append(nodes("b", price_per_hour=7, available_from_seconds=3600, start_seconds=600))
        paid = bill(kinds, 3 * 3600)
        assert (paid.makespan_seconds, paid.gpu_hours, paid.cost) == (3 * 3600, 14, 74)

    def test_a_node_that_comes_too_late_is_not_paid(self) -> None:
        paid = bill([nodes(), nodes("b", price_per_hour=7, available_from_seconds=7200)], 3600)
        assert (paid.gpu_hours, paid.cost) == (1, 0)


class TestScaling:
    def test_equal_runs_need_a_gpu_each(self) -> None:
        """12 runs of 1 h after a start of 6 minutes, on nodes of 4 GPUs at 8 an hour."""
        found = scaling(nodes(gpus=4, price_per_hour=8, start_seconds=360), {f"m-s{n}": 3600.0 for n in range(12)})
        assert (found.least_seconds, found.enough_gpus) == (3960, 12)
        assert [(each.gpus, each.least.makespan_seconds / 3600) for each in found.bounds] == [
            (1, 12.1), (2, 6.1), (4, 3.1), (8, 1.6), (12, 1.1),
        ]  # fmt: skip
        costs = [8 * 12.1, 8 * 6.1, 8 * 3.1, 16 * 1.6, 24 * 1.1]
        assert [each.least.cost for each in found.bounds] == pytest.approx(costs)

    @given(st.lists(st.integers(1, 50), min_size=1, max_size=12))
    def test_fewer_than_enough_are_never_near_the_least(self, times: list[int]) -> None:
        found = scaling(nodes(), {f"m-s{n}": float(each) for n, each in enumerate(times)})
        assert found.least_seconds == max(times)
        for count in range(1, found.enough_gpus):
            assert makespan([nodes(count=count)], [[float(each) for each in times]]) > 1.01 * max(times)


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
        assert plan.bounds.least.makespan_seconds == plan.scalings[0].least_seconds

    def test_a_run_that_outlives_its_tries_is_named(self) -> None:
        cluster = Cluster(nodes=(nodes(preemptions_per_hour=5),))
        plan = plan_cluster(cluster, runs("2h", 1, 1), {"m0": measured("m0")})
        assert "given up after 10" in plan.warnings[-1]

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
        for bound in ("least", "most"):
            bill = cluster[bound]
            assert bill["gpu_hours"] == 2 * bill["makespan_seconds"] / 3600
            assert bill["cost"] == pytest.approx(36 * bill["makespan_seconds"] / 3600)
        assert (cluster["currency"], cluster["gpus"], cluster["scaling"][0]["enough_gpus"]) == ("EUR", 2, 4)
        assert "4 runs on 2 GPUs" in text
        assert f"cost {cluster['least']['cost']:.2f} to {cluster['most']['cost']:.2f} EUR" in text
        assert f"measured here: {cluster['measured_on']}" in text
