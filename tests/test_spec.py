"""Records that cross a border: parsing of budgets and eps, names, and what a record refuses."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bench.record import EvalResult, Record, Setting, TrainResult
from bench.spec import Budget, DataSpec, EvalSpec, RunSpec, ThreatModel, UsageError, format_eps, parse_eps, unknown

SPEC = RunSpec(method="simclr", data=DataSpec(name="digits"), budget=Budget.parse("10up"))


class TestBudget:
    @pytest.mark.parametrize(
        ("text", "amount", "unit", "printed"),
        [
            ("90s", 90.0, "seconds", "90s"),
            ("30m", 1800.0, "seconds", "30m"),
            ("2h", 7200.0, "seconds", "2h"),
            ("1.5h", 5400.0, "seconds", "90m"),
            (".5s", 0.5, "seconds", "0.5s"),
            (" 60 s ", 60.0, "seconds", "1m"),
            ("20ep", 20.0, "epochs", "20ep"),
            ("0.25ep", 0.25, "epochs", "0.25ep"),
            ("5000up", 5000.0, "updates", "5000up"),
            ("1234567s", 1234567.0, "seconds", "1234567s"),
            ("12345678up", 12345678.0, "updates", "12345678up"),
        ],
    )
    def test_is_parsed_and_printed(self, text, amount, unit, printed):
        budget = Budget.parse(text)
        assert (budget.amount, budget.unit, str(budget)) == (amount, unit, printed)
        assert Budget.parse(printed) == budget

    @given(st.integers(1, 10**8), st.sampled_from(["s", "m", "h", "ep", "up"]))
    def test_comes_back_from_its_text(self, number, unit):
        budget = Budget.parse(f"{number}{unit}")
        assert Budget.parse(str(budget)) == budget

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("10", r"expected a budget such as 90s, 30m, 2h, 20ep \(epochs\) or 5000up \(updates\), got '10'"),
            ("", "got ''"),
            ("s", "got 's'"),
            ("10d", "got '10d'"),
            ("1h30m", "got '1h30m'"),
            ("-5s", "got '-5s'"),
            ("nans", "got 'nans'"),
            ("1e3s", "got '1e3s'"),
            ("0s", "expected a budget above 0, got '0s'"),
            ("0.0ep", "expected a budget above 0"),
            ("1.5up", "expected a whole number of updates, got '1.5up'"),
        ],
    )
    def test_refuses(self, text, message):
        with pytest.raises(UsageError, match=message):
            Budget.parse(text)


class TestEps:
    @pytest.mark.parametrize(
        ("text", "eps"), [("8/255", 8 / 255), (" 4/255 ", 4 / 255), ("0.1", 0.1), ("0", 0.0), ("1", 1.0)]
    )
    def test_is_parsed(self, text, eps):
        assert parse_eps(text) == eps

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("8", r"^expected eps in \[0, 1\], got 8; did you mean 8/255\?$"),
            ("2.5", r"did you mean 2.5/255\?"),
            ("256", r"^expected eps in \[0, 1\], got 256$"),
            ("16/8", r"^expected eps in \[0, 1\], got 16/8$"),
            ("-0.1", r"^expected eps in \[0, 1\], got -0.1$"),
            ("nan", r"^expected eps in \[0, 1\], got nan$"),
            ("inf", r"^expected eps in \[0, 1\], got inf$"),
            ("8/0", "expected eps such as 8/255 or 0.1, got '8/0'"),
            ("eight", "expected eps such as 8/255 or 0.1, got 'eight'"),
            ("1/2/3", "got '1/2/3'"),
            ("", "got ''"),
        ],
    )
    def test_refuses(self, text, message):
        with pytest.raises(UsageError, match=message):
            parse_eps(text)

    @pytest.mark.parametrize(
        ("eps", "text"), [(8 / 255, "8/255"), (0.1, "0.1"), (0.0, "0"), (1.0, "1"), (0.2, "0.2"), (2.55 / 255, "0.01")]
    )
    def test_is_printed(self, eps, text):
        assert format_eps(eps) == text

    @given(st.integers(0, 255))
    def test_every_255th_comes_back_from_its_text(self, n):
        assert parse_eps(format_eps(n / 255)) == n / 255


class TestUnknown:
    def test_says_the_nearest_and_all_known_names(self):
        expected = "unknown method 'simclrr'; did you mean 'simclr'? known: emp_ssl, simclr"
        assert unknown("method", "simclrr", iter(["emp_ssl", "simclr"])) == expected

    def test_says_no_name_that_is_not_near(self):
        assert unknown("attack", "zzz", ["fgsm", "pgd"]) == "unknown attack 'zzz'; known: fgsm, pgd"


def trained(**changed):
    numbers = {
        name: 0
        for name, field in TrainResult.model_fields.items()
        if field.is_required() and name not in ("status", *changed)
    }
    return TrainResult(status="finished", **numbers, **changed)


def scored(**changed):
    values = {
        "protocol": "linear",
        "attack": "pgd",
        "threat_space": "image",
        "eps": 0.1,
        "outcomes": "10",
        "seconds": 1,
    }
    return EvalResult(**values | changed)


class TestRecords:
    def test_a_run_comes_back_from_its_json(self):
        record = Record(
            spec=SPEC,
            settings=[Setting(name="lr", value=0.3, source="code")],
            train=trained(train_seconds=1.5, losses=[(0.5, -3.0)]),
            results=[scored(), scored(eps=0.05)],
            status="finished",
        )
        assert Record.model_validate_json(record.model_dump_json()) == record
        assert json.loads(record.model_dump_json())["train"]["losses"] == [[0.5, -3.0]]

    @pytest.mark.parametrize(
        "make",
        [
            lambda: Budget(amount=1, unit="seconds", hours=1),
            lambda: ThreatModel(eps=0.1, radius=0.1),
            lambda: DataSpec(name="digits", size=3),
            lambda: EvalSpec(restart=3),
            lambda: SPEC.model_validate(SPEC.model_dump() | {"seeds": 3}),
            lambda: trained(accuracy=0.5),
        ],
    )
    def test_unknown_keys_are_refused(self, make):
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            make()

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("name", ["train_seconds", "last_lr", "first_loss"])
    def test_numbers_are_finite(self, name, value):
        with pytest.raises(ValidationError, match="finite number"):
            trained(**{name: value})

    def test_losses_are_finite(self):
        with pytest.raises(ValidationError, match="finite number"):
            trained(losses=[(0.5, math.nan)])

    def test_are_immutable(self):
        with pytest.raises(ValidationError, match="frozen"):
            SPEC.seed = 3

    def test_limits_hold(self):
        with pytest.raises(ValidationError, match="greater than 0"):
            Budget(amount=0, unit="updates")
        with pytest.raises(ValidationError, match=r"expected eps of l-inf in \[0, 1\], got 8"):
            ThreatModel(eps=8)
        assert ThreatModel(eps=8, norm="l2").label == "l2 8"
        with pytest.raises(ValidationError, match="'linf' or 'l2'"):
            ThreatModel(eps=0.1, norm="l1")
        with pytest.raises(ValidationError, match="greater than or equal to 0"):
            SPEC.model_validate(SPEC.model_dump() | {"seed": -1})
        with pytest.raises(ValidationError, match="should match pattern"):
            scored(outcomes="10x")

    def test_correct_and_total_are_counts_of_outcomes(self):
        result = scored(outcomes="110100")
        assert (result.correct, result.total) == (3, 6)

    def test_a_cell_has_one_result(self):
        with pytest.raises(ValidationError, match="expected one result per cell"):
            Record(spec=SPEC, results=[scored(), scored(outcomes="11")])

    def test_a_run_is_named_after_method_and_seed(self):
        assert SPEC.model_copy(update={"seed": 4}).name == "simclr-s4"


def test_a_usage_error_is_a_value_error():
    assert issubclass(UsageError, ValueError)
