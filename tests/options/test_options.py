"""Options and suites: which runs follow, which settings win, and what is refused."""

import pytest
from data_fixtures import write_images

from bench.commands.options import gather
from bench.commands.output import check_cap
from bench.options.options import Options, Row, chosen_rows, load_suite, options_of, row_budgets, suites
from bench.options.resolve import resolve
from bench.runs.plan import Estimate
from bench.spec import Budget, RunSpec, UsageError

SUITE = """
data = "synthetic"
seeds = "2"
eval = "quick"

[settings.all]
batch = 16
lr = 0.1

[[rows]]
method = "emp_ssl"
budget = "4up"

[[rows]]
name = "emp_ssl-slow"
method = "emp_ssl"
budget = "6up"
settings = { lr = 0.01, views = 3 }
"""


@pytest.fixture
def suite(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(SUITE, encoding="utf-8")
    return str(file)


def runs(**given):
    specs, budget, total, _ = resolve(gather(given))
    return specs, budget, total


def test_rows_have_their_names_budgets_and_settings(suite):
    specs, budget, total = runs(suite=suite)
    assert [spec.name for spec in specs] == ["emp_ssl-s0", "emp_ssl-slow-s0", "emp_ssl-slow-s1", "emp_ssl-s1"]
    assert [(s.method, str(s.budget)) for s in specs[:2]] == [("emp_ssl", "4up"), ("emp_ssl", "6up")]
    assert (budget, total) == (None, None)
    assert specs[0].settings == {"batch": 16, "lr": 0.1}
    assert specs[1].settings == {"batch": 16, "lr": 0.01, "views": 3}  # the row's own wins over the suite's for all


def test_the_command_line_wins_over_a_suite(suite):
    specs, budget, _ = runs(suite=suite, settings=("all.lr=0.2", "emp_ssl-slow.views=4"), budget=("2up",), seeds="1")
    assert [spec.settings["lr"] for spec in specs] == ["0.2", "0.2"]
    assert [spec.settings.get("views") for spec in specs] == [None, "4"]
    assert str(budget) == "2up"
    assert {str(spec.budget) for spec in specs} == {"2up"}


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        ("all", ["emp_ssl", "emp_ssl-slow"]),
        ("emp_ssl-slow", ["emp_ssl-slow"]),
        ("emp_ssl", ["emp_ssl", "emp_ssl-slow"]),  # a method means all of its rows
    ],
)
def test_methods_pick_among_the_rows(suite, methods, expected):
    assert [row.label for row in chosen_rows(gather({"suite": suite, "methods": methods}))] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": "emp_ssl-fast"}, "unknown row 'emp_ssl-fast'; did you mean 'emp_ssl-slow'"),
        ({"methods": ","}, "expected at least one row, got ','"),
        ({"total_budget": ("10up",)}, "a total budget in time, as the rows state their own training, got 10up"),
        ({"settings": ("simclr.lr=1",)}, "unknown method, attack or protocol 'simclr'"),
        ({"precision": "fp16"}, "precision"),
        ({"eval_budget": "20ep"}, "expected --eval-budget in time, such as 20m, got 20ep"),
    ],
)
def test_what_is_refused(suite, changes, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        runs(suite=suite, **changes)


def test_rows_of_one_name_and_of_bad_names_are_refused():
    twice = Options(rows=[Row(method="emp_ssl", budget="1up"), Row(method="emp_ssl", budget="2up")])
    with pytest.raises(
        UsageError,
        match="got emp_ssl for emp_ssl and for emp_ssl; name them apart: give",
    ):
        chosen_rows(twice)
    with pytest.raises(UsageError, match=r"rows\.0\.name"):
        options_of({"rows": [{"method": "emp_ssl", "name": "../away"}]})
    with pytest.raises(UsageError, match=r"rows\.0\.colour"):
        options_of({"rows": [{"method": "emp_ssl", "colour": "red"}]})


def test_a_row_without_a_budget_takes_the_common_one():
    rows = [Row(method="emp_ssl", budget="4up"), Row(method="simclr")]
    assert row_budgets(Options(rows=rows, budget="9up"), rows, None, 1) == [Budget.parse("4up"), Budget.parse("9up")]
    with pytest.raises(UsageError, match="expected one budget"):
        row_budgets(Options(rows=rows), rows, None, 1)


def test_a_total_budget_caps_the_rows_that_state_their_own():
    planned = [
        Estimate(
            row="a",
            seed=0,
            train_seconds=3600.0 + 30,
            warm_up_seconds=30.0,
            evaluate_seconds=9e9,
            peak_memory_bytes=1,
            cells=1,
            updates=100,
        )
    ] * 2
    check_cap(Budget.parse("2h"), planned)
    check_cap(None, planned * 9)
    with pytest.raises(UsageError, match="about 3 h of training, above the total budget of 2h"):
        check_cap(Budget.parse("2h"), planned[:1] * 3)


def test_settings_of_a_suite_go_with_the_protocol_that_the_command_leaves_out():
    given = {"suite": "paper_heads_small", "protocols": "linear,clean2=released_mixed"}
    assert gather(given).settings.keys() == {"clean2"}
    assert gather(given | {"protocols": "linear"}).settings == {}
    asked = gather(given | {"protocols": "linear", "settings": ("clean20.clean=3",)})  # of the command: refused later
    assert asked.settings.keys() == {"clean20"}


@pytest.mark.parametrize("name", suites())
def test_every_suite_of_the_project_can_be_resolved(name):
    """On small synthetic images, so that nothing is downloaded; settings, names and budgets are checked."""
    values = load_suite(name)
    options = options_of(values | {"data": "cifar10"})
    rows = chosen_rows(options)
    assert len(rows) >= (1 if name == "paper_heads" else 2)  # of one encoder, several heads
    assert values["description"]
    assert len(row_budgets(options, rows, None, 1)) == len(rows)


def test_the_paper_suite_states_the_rows_of_the_paper():
    """Epochs, crops, steps or m of the table of arXiv:2501.03507."""
    rows = chosen_rows(options_of(load_suite("paper")))
    stated = {
        row.method: (row.budget, row.settings["views"], row.settings.get("steps"), row.settings.get("replays"))
        for row in rows
    }
    assert stated == {
        "emp_ssl_patch_adv": ("30ep", 16, 5, None),
        "emp_ssl_adv": ("30ep", 16, 5, None),
        "simclr_adv": ("500ep", 2, 5, None),
        "simclr_patch_adv": ("500ep", 2, 5, None),
        "emp_ssl_patch_free": ("10ep", 16, None, 3),
        "simclr_free": ("167ep", 2, None, 3),
        "cf_amc_ssl": ("10ep", 16, None, 3),
    }


@pytest.mark.ci
class TestEncoderAndImages:
    """What an encoder cannot take is refused before anything runs; the images are 256 pixels here."""

    @pytest.fixture
    def folders(self, tmp_path):
        write_images(tmp_path / "net", 5, 2, ("n00000001", "n00000002"), ("train", "val"), ".JPEG", first=9)
        write_images(tmp_path / "photos", 5, 2, first=9)
        return tmp_path

    def resolved(self, data, encoder, **more):
        given = {"data": data, "encoder": encoder, "methods": "simclr", "budget": ("1up",), "device": "cpu"}
        return resolve(gather(given | {"settings": ("all.batch=4",)} | more))[0]

    def test_views_and_centres_of_224_pixels_are_taken(self, folders):
        (spec,) = self.resolved(f"imagenet:{folders / 'net'}", "torchvision:vit_b_16", image_size=256)
        assert spec.encoder == "torchvision:vit_b_16"

    @pytest.mark.parametrize(
        ("data", "more", "message"),
        [
            ("imagenet:net", {"image_size": 128}, "such as 224 x 224 pixels, got images to evaluate on of 112 x 112"),
            ("imagenet:net", {"settings": ("all.batch=4", "all.view_share=1")}, "got views of simclr of 256 x 256"),
            ("folder:photos", {"image_size": 256}, "got images to evaluate on of 256 x 256"),
            ("synthetic", {}, "got images to evaluate on of 16 x 16 pixels"),
            ("digits", {}, "expected RGB images for torchvision:vit_b_16, got 1 channel; choose resnet18 or resnet8"),
        ],
    )
    def test_others_are_refused(self, folders, data, more, message):
        with pytest.raises(UsageError, match=message):
            self.resolved(data.replace(":", f":{folders}/"), "torchvision:vit_b_16", **more)

    def test_a_method_with_views_of_its_own_is_asked_for_the_images_alone(self, folders, tmp_path):
        own = "import methods.simclr as s\nConfig = s.Config\nclass Method(s.Method):\n    def augment(self, *a): ...\n"
        (tmp_path / "own.py").write_text('"""Own."""\n' + own, encoding="utf-8")
        settings = ("all.batch=4", "all.view_share=1")
        data = f"imagenet:{folders / 'net'}"
        (spec,) = self.resolved(data, "torchvision:vit_b_16", methods=str(tmp_path / "own.py"), settings=settings)
        assert spec.method == "own"

    def test_a_name_that_does_not_exist_is_refused_before_the_data_is_looked_for(self):
        with pytest.raises(UsageError, match=r"unknown encoder 'timm:nothing'; .*timm has"):
            self.resolved("synthetic", "timm:nothing")
        with pytest.raises(UsageError, match="unknown encoder 'torchvision:vit_b_61'; did you mean vit_b_16"):
            self.resolved("synthetic", "torchvision:vit_b_61")


class TestGpusPerRun:
    def test_are_in_every_run_and_not_written_where_it_is_one(self):
        given = {"data": "digits", "methods": "simclr", "budget": ("1up",), "device": "cpu"}
        (alone,), (two,) = (resolve(gather(given | more))[0] for more in ({}, {"gpus_per_run": 2}))
        assert (alone.gpus_per_run, two.gpus_per_run) == (1, 2)
        assert "gpus_per_run" not in alone.model_dump_json()
        assert RunSpec.model_validate_json(alone.model_dump_json()) == alone
        assert RunSpec.model_validate_json(two.model_dump_json()) == two

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"gpus_per_run": 3, "settings": ("simclr.batch=64",)}, r"in 3 equal parts, .* got 64; .*METHOD\.batch=63"),
            ({"gpus_per_run": 2, "compile": True}, "expected one GPU per run with --compile"),
            ({"gpus_per_run": 0}, "gpus_per_run: input should be greater than 0, got 0"),
        ],
    )
    def test_what_is_refused(self, changes, message):
        given = {"data": "digits", "methods": "simclr", "budget": ("1up",), "device": "cpu"}
        with pytest.raises(UsageError, match=message):
            resolve(gather(given | changes))
