"""The plan: what is expected of a run, from measured passes, in closed form."""

import pytest
from store_fixtures import TRAINED

from bench.options.options import share
from bench.runs.plan import Measured, audit_seconds, cell_seconds, curve_seconds, duration, estimate, update_seconds
from bench.spec import Budget, DataSpec, EvalSpec, RunSpec, UsageError

SPEC = EvalSpec(main_eps=0.1, eps=(0.1,), restarts=1)


def measured(adversary: str = "free", updates: int | None = None, seconds: float = 0.1) -> Measured:
    """A machine on which a pass of n images takes 1 ms + n * 0.1 ms."""
    return Measured(
        row="m",
        adversary=adversary,
        updates=updates,
        update_seconds=seconds,
        warm_up_seconds=0.5,
        passes=dict.fromkeys(("linear", "multi_patch"), (1e-3, 1e-4)),
        train_images=1500,
        test_images=300,
        peak_memory_bytes=2**30,
    )


def run(budget: str, **evaluation: object) -> RunSpec:
    """A run with this budget."""
    spec = SPEC.model_copy(update=evaluation)
    return RunSpec(method="m", data=DataSpec(name="digits"), budget=Budget.parse(budget), eval=spec)


class TestCells:
    def test_clean_accuracy_is_one_pass(self) -> None:
        assert cell_seconds("none", 0.0, 300, SPEC, 0.4, 1e-3, 1e-4) == pytest.approx(0.031)

    def test_corruptions_are_75_passes_and_what_it_takes_to_make_the_images(self) -> None:
        assert cell_seconds("corruptions", 0.0, 100, SPEC, 0.4, 1e-3, 1e-4) == pytest.approx(75 * (1e-3 + 100 * 31e-4))

    def test_an_attack_without_an_eps_takes_every_image_to_its_last_step(self) -> None:
        spec = SPEC.model_copy(update={"minimum_norm": ("fmn",)})
        assert cell_seconds("fmn", 1.0, 300, spec, 0.4, 1e-3, 1e-4) == pytest.approx(400 * 0.031)

    def test_a_form_in_another_norm_costs_what_its_attack_costs(self) -> None:
        for name in ("pgd", "autoattack"):
            of_form, of_attack = (cell_seconds(each, 0.1, 64, SPEC, 0.5, 1e-3, 1e-4) for each in (f"{name}_l2", name))
            assert of_form == of_attack

    def test_pgd_is_41_passes_of_what_stands(self) -> None:
        """20 steps of 2 F, one last forward; 30 % of 300 images stand, the rest falls within 10 passes."""
        seconds = cell_seconds("pgd", 0.1, 300, SPEC, 0.3, 1e-3, 1e-4)
        assert seconds == pytest.approx(41 * (1e-3 + 90e-4) + 10 * 0.031)

    def test_pgd_scales_with_restarts(self) -> None:
        more = SPEC.model_copy(update={"restarts": 5})
        five, one = (cell_seconds("pgd", 0.1, 300, each, 1.0, 0.0, 1e-4) for each in (more, SPEC))
        assert five - one == pytest.approx(4 * 41 * 300e-4)

    def test_autoattack_is_11_700_passes_of_what_stands(self) -> None:
        seconds = cell_seconds("autoattack", 0.1, 64, SPEC, 0.5, 1e-3, 1e-4)
        assert seconds == pytest.approx(11_700 * (1e-3 + 32e-4) + 40 * (1e-3 + 64e-4))

    def test_an_encoder_that_is_not_robust_costs_little(self) -> None:
        assert cell_seconds("autoattack", 0.1, 64, SPEC, 0.0, 1e-3, 1e-4) == pytest.approx(40 * (1e-3 + 64e-4))


class TestCurve:
    @pytest.mark.parametrize("restarts", [1, 5])
    def test_each_of_five_points_is_a_pass_of_the_training_images_and_pgd_on_200(self, restarts: int) -> None:
        spec = SPEC.model_copy(update={"over_time": "robust", "restarts": restarts})
        pgd = 41 * (1e-3 + 200 * 0.3 * 1e-4) + 10 * (1e-3 + 200e-4)
        assert curve_seconds(1500, spec, 0.3, 1e-3, 1e-4) == pytest.approx(5 * (1e-3 + 1500e-4 + pgd))

    def test_a_clean_curve_has_no_attack_and_none_costs_nothing(self) -> None:
        clean, off = (estimate(run("10s", over_time=each), measured()).evaluate_seconds for each in ("clean", "off"))
        assert clean - off == pytest.approx(5 * (1e-3 + 1500e-4))


class TestAudit:
    def seconds(self, robust: float, images: int = 64, **evaluation: object) -> float:
        spec = SPEC.model_copy(update=evaluation)
        return audit_seconds(False, images, 300, spec, robust, 0.0, 1e-4)

    def test_off_costs_nothing_and_a_number_of_zero_little(self) -> None:
        assert self.seconds(0.5, audit="off") == 0
        assert self.seconds(0.0, audit="core") == pytest.approx(1e-4 * (2400 + 300 + 20 * 64))

    def test_the_core_is_what_the_zoo_has_counted(self) -> None:
        """emp_ssl_adv on digits, 45 of 64 stand: 22,325 F."""
        assert self.seconds(45 / 64, audit="core") == pytest.approx(22_325e-4, rel=0.1)

    def test_the_full_audit_is_what_the_zoo_has_counted(self) -> None:
        """The same model: 110,557 F, and 101 for each of 64 images that it gives to others."""
        assert self.seconds(45 / 64, audit="full") == pytest.approx(110_557e-4 + 64 * 101e-4, rel=0.1)

    def test_images_are_cut_to_the_level(self) -> None:
        assert self.seconds(0.5, 10_000, audit="core") == self.seconds(0.5, 64, audit="core")
        assert self.seconds(0.5, 10_000, audit="full") == self.seconds(0.5, 1000, audit="full")

    def test_a_run_without_autoattack_has_no_number_to_audit(self) -> None:
        for attacks, more in ((("pgd", "autoattack"), True), (("pgd",), False)):
            on, off = (estimate(run("10s", attacks=attacks, audit=level), measured()) for level in ("core", "off"))
            assert (on.evaluate_seconds > off.evaluate_seconds) is more


class TestRuns:
    def test_a_budget_in_time_is_the_training_time(self) -> None:
        assert estimate(run("10s"), measured()).train_seconds == 10.5

    def test_a_budget_in_updates_is_measured(self) -> None:
        assert estimate(run("300up"), measured(updates=300)).train_seconds == 30.5

    def test_cells_are_counted(self) -> None:
        """Clean, PGD at six eps of the curve, AutoAttack; for two protocols."""
        assert estimate(run("10s"), measured()).cells == 16

    def test_a_few_updates_are_not_expected_to_make_an_encoder_robust(self) -> None:
        few = estimate(run("4up"), measured(updates=4)).evaluate_seconds
        many = estimate(run("400up"), measured(updates=400)).evaluate_seconds
        assert few < 20 < 60 < many


def test_the_update_of_a_training_in_stages_is_the_mean_over_their_shares() -> None:
    """A fifth of the budget at .1 s, the rest at .5 s: 100 updates are 42 s, and 100 s hold 200 and 160 updates."""
    stages = [{"seconds": 0.1, "updates": 1}, {"seconds": 1.0, "updates": 2}]
    result = TRAINED.model_copy(update={"stages": stages, "median_update_seconds": 9.0})
    assert update_seconds(result, [0.2, 1.0], timed=False) == pytest.approx(0.42)
    assert update_seconds(result, [0.2, 1.0], timed=True) == pytest.approx(100 / 360)
    assert update_seconds(result.model_copy(update={"stages": []}), [1.0], timed=True) == 9.0


def test_durations_for_people() -> None:
    assert [duration(s) for s in (0.4, 99, 101, 7200)] == ["0 s", "99 s", "1.68 min", "2 h"]


class TestTotalBudget:
    def test_it_is_split_evenly_and_updates_are_rounded_down(self) -> None:
        assert share(Budget.parse("2h"), 9).amount == pytest.approx(800)
        assert share(Budget.parse("100up"), 9) == Budget(amount=11, unit="updates")

    def test_less_than_one_update_each_is_a_usage_error(self) -> None:
        with pytest.raises(UsageError, match="at least one update for each of 9 runs, got 8up"):
            share(Budget.parse("8up"), 9)
