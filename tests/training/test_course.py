"""Which batch, epoch and replay an update belongs to, and how many updates a budget is."""

import pytest

from bench.spec import Budget, UsageError
from bench.training.course import Course


class TestCourse:
    @pytest.mark.parametrize(
        ("budget", "updates"),
        [("7up", 7), ("1ep", 15), ("2ep", 30), ("0.5ep", 8), ("0.2ep", 3), ("1.4ep", 21), ("0.000000001ep", 1)],
    )
    def test_total_updates(self, budget, updates):
        assert Course(20, 4, 3).total_updates(Budget.parse(budget)) == updates

    def test_a_budget_in_time_has_none(self):
        assert Course(20, 4, 3).total_updates(Budget.parse("10s")) is None

    @pytest.mark.parametrize("hundredths", [7, 14, 28, 55, 56, 57, 110])
    def test_rounding_adds_no_update(self, hundredths):
        assert Course(100, 1, 1).total_updates(Budget(amount=hundredths / 100, unit="epochs")) == hundredths

    def test_locate_counts_epoch_batch_and_replay(self):
        course = Course(images=11, batch=4, updates_per_batch=3)  # two batches per epoch
        assert course.updates_per_epoch == 6
        places = [(e, b, r) for e in range(3) for b in range(2) for r in range(3)]
        assert [course.locate(n) for n in range(18)] == places

    @pytest.mark.parametrize(("batch", "ranks", "fitting"), [(100, 8, 96), (6, 4, 8), (2, 4, 4)])
    def test_a_batch_is_shared_evenly(self, batch, ranks, fitting):
        assert Course(200, fitting, 1, ranks).updates_per_epoch == 200 // fitting
        with pytest.raises(UsageError, match=f"in {ranks} equal parts, .*, got {batch}; .* METHOD.batch={fitting}$"):
            Course(200, batch, 1, ranks)
