"""Several folders in one report: who becomes one line, what is refused, what is left empty, and what is said of it."""

import pandas as pd
import pytest
from click.testing import CliRunner
from html_fixtures import examples
from pypdf import PdfReader
from report_fixtures import DIGITS, MACHINE, manifest, records, tables_only, write

from bench.cli import cli, main
from bench.record import Record, Setting
from bench.spec import Budget, UsageError
from bench.storage.store import RunFolder, load_manifest
from reports.build import build, build_merged
from reports.claims import hardware_class
from reports.differences import Folder
from reports.leaderboard import leaderboard
from reports.merge import LEFT_OUT, OF_MACHINE, UNEQUAL, merge
from reports.rows import rows

GPU = MACHINE.model_copy(
    update={"device_name": "NVIDIA H100", "device": "cuda:0", "torch": "2.9.0", "commit": "f" * 40}
)


def folder(name, *methods, seeds=(0,), environment=MACHINE, **asked):
    """A run folder of these methods and seeds, all finished."""
    wanted = manifest(methods, seeds=max(seeds) + 1, **asked)
    runs = [spec for spec in wanted.runs if spec.seed in seeds]
    wanted = wanted.model_copy(update={"runs": runs, "seeds": list(seeds), "environment": environment})
    found = [record.model_copy(update={"environment": environment}) for record in records(wanted, diverged=())]
    return Folder(name, wanted, found)


def budgeted(source, text):
    """The folder with another budget."""
    budget = Budget.parse(text)
    found = [r.model_copy(update={"spec": r.spec.model_copy(update={"budget": budget})}) for r in source.records]
    wanted = source.manifest.model_copy(update={"budget": budget, "runs": [r.spec for r in found]})
    return Folder(source.name, wanted, found)


def names(*folders):
    return [record.spec.name for record in merge(folders).view.records]


# ---------------------------------------------------------------- lines


def test_seeds_of_several_days_are_one_line():
    one, two = folder("one", "cf_amc_ssl", seeds=(0, 1)), folder("two", "cf_amc_ssl", seeds=(2,))
    view = merge([one, two]).view
    board = leaderboard(rows(view.manifest, view.records), view.records, view.manifest.main_eps)
    assert board["method"].unique().tolist() == ["cf_amc_ssl"]
    assert board["seeds"].tolist() == [3, 3]
    assert view.manifest.seeds == [0, 1, 2]
    assert view.sources == {"cf_amc_ssl-s0": "one", "cf_amc_ssl-s1": "one", "cf_amc_ssl-s2": "two"}


def attacked(source, **changes):
    """The folder with another evaluation."""
    found = []
    for each in source.records:
        spec = each.spec.model_copy(update={"eval": each.spec.eval.model_copy(update=changes)})
        found.append(each.model_copy(update={"spec": spec}))
    return Folder(source.name, source.manifest.model_copy(update={"runs": [r.spec for r in found]}), found)


def test_where_the_file_of_an_attack_lies_makes_no_other_line_but_its_settings_do():
    one, two = folder("one", "cf_amc_ssl", seeds=(0,)), folder("two", "cf_amc_ssl", seeds=(1,))
    here, there = (attacked(each, attack_paths={"mine": f"/{each.name}/mine.py"}) for each in (one, two))
    assert names(here, there) == ["cf_amc_ssl-s0", "cf_amc_ssl-s1"]
    other = attacked(there, attack_settings={"mine": {"steps": 7}})
    assert names(here, other) == ["cf_amc_ssl@one-s0", "cf_amc_ssl@two-s1"]


def test_methods_of_several_machines_stand_beside_each_other():
    assert names(folder("one", "simclr_adv"), folder("two", "cf_amc_ssl")) == ["simclr_adv-s0", "cf_amc_ssl-s0"]


def test_the_same_run_twice_counts_once_and_one_that_has_not_begun_gives_way():
    one = folder("one", "cf_amc_ssl", "simclr_adv")
    assert names(one, Folder("copy", one.manifest, one.records)) == ["cf_amc_ssl-s0", "simclr_adv-s0"]
    waiting = Folder("two", one.manifest, [Record(spec=one.records[0].spec), one.records[1]])
    assert names(waiting, one) == ["simclr_adv-s0", "cf_amc_ssl-s0"]
    nothing = Folder("two", one.manifest, [Record(spec=spec) for spec in one.manifest.runs])
    assert names(nothing, nothing) == ["cf_amc_ssl-s0", "simclr_adv-s0"]


def test_a_seed_that_two_folders_trained_is_named_by_folder():
    """They are no two draws of one method, and neither is the right one."""
    one, two = (
        folder("one", "cf_amc_ssl", "simclr", seeds=(0, 1)),
        folder("two", "cf_amc_ssl", seeds=(1,), environment=GPU),
    )
    assert names(one, two) == ["cf_amc_ssl@one-s0", "simclr-s0", "cf_amc_ssl@one-s1", "simclr-s1", "cf_amc_ssl@two-s1"]


@pytest.mark.parametrize("what", ["a setting", "the evaluation", "the precision"])
def test_another_recipe_is_no_seed_of_the_same_method(what):
    one = folder("one", "cf_amc_ssl", seeds=(0,))
    two = folder("two", "cf_amc_ssl", seeds=(1,), level="full" if what == "the evaluation" else "quick")
    (record,) = two.records
    if what == "a setting":
        settings = [*record.settings[:-1], Setting(name="train_eps", value=0.3, source="--set")]
        record = record.model_copy(update={"settings": settings})
    if what == "the precision":
        record = record.model_copy(update={"spec": record.spec.model_copy(update={"precision": "bf16"})})
    assert names(one, Folder("two", two.manifest, [record])) == ["cf_amc_ssl@one-s0", "cf_amc_ssl@two-s1"]
    machine = two.records[0].spec.model_copy(update={"device": "cuda:0", "threads": 7})
    elsewhere = Folder("two", one.manifest, [one.records[0].model_copy(update={"spec": machine})])
    if what == "a setting":
        assert names(one, elsewhere) == ["cf_amc_ssl-s0", "cf_amc_ssl-s1"]


def test_budgets_are_ranked_apart_as_those_of_one_command():
    short, long = folder("one", "cf_amc_ssl", "simclr_adv"), budgeted(folder("two", "cf_amc_ssl", "emp_ssl"), "5m")
    view = merge([short, long]).view
    assert [r.spec.row for r in view.records] == ["cf_amc_ssl-1m", "simclr_adv-1m", "cf_amc_ssl-5m", "emp_ssl-5m"]
    board = leaderboard(rows(view.manifest, view.records), view.records, view.manifest.main_eps)
    linear = board[board["protocol"] == "linear"]
    assert linear["budget"].tolist() == ["1m", "1m", "5m", "5m"]
    assert linear["rank_lo"].tolist() == [1, 2, 1, 2]
    assert view.manifest.budget is None
    alone = merge([folder("one", "simclr_adv"), budgeted(folder("two", "emp_ssl"), "5m")]).view
    board = leaderboard(rows(alone.manifest, alone.records), alone.records, alone.manifest.main_eps)
    assert board["rank_hi"].tolist() == [1, 1, 1, 1]  # each ranked alone, although no method has both budgets


@pytest.mark.parametrize("what", ["data", "main eps"])
def test_other_data_or_eps_are_refused(what):
    one, two = (
        folder("one", "cf_amc_ssl"),
        folder("two", "cf_amc_ssl", eps=(0.08, 0.2) if what == "main eps" else (0.05, 0.1)),
    )
    if what == "data":
        two = Folder(
            "two", two.manifest.model_copy(update={"data": DIGITS.model_copy(update={"test_sha256": "c" * 64})}), ()
        )
    got = "got 0.2 in two" if what == "main eps" else "test images cccccccccccc"
    with pytest.raises(UsageError, match=rf"expected the same {what} in all folders: .* as in one, .*{got}"):
        merge([one, two])


# ---------------------------------------------------------------- machines


def test_costs_of_two_machines_share_no_column():
    one, two = folder("one", "simclr_adv"), folder("two", "cf_amc_ssl", environment=GPU)
    view = merge([one, two]).view
    table = rows(view.manifest, view.records)
    shown = view.comparable(table)
    assert set(OF_MACHINE) < set(table)
    assert shown[list(OF_MACHINE)].isna().all(axis=None)
    same = [name for name in table if name not in OF_MACHINE]
    pd.testing.assert_frame_equal(shown[same], table[same])
    board = view.noted(leaderboard(shown, view.records, view.manifest.main_eps))
    assert board[["train_seconds", "compile_seconds", "peak_memory_bytes"]].isna().all(axis=None)
    assert board["worst"].notna().all()
    assert board["standing"].str.endswith(f"{LEFT_OUT} {UNEQUAL}").all()
    stored = view.stored(table)
    assert stored["train_seconds"].notna().all()
    assert dict(zip(stored["source"], stored["hardware"], strict=True)) == {
        "one": hardware_class(MACHINE),
        "two": hardware_class(GPU),
    }


def test_one_class_of_hardware_keeps_its_costs():
    view = merge([folder("one", "simclr_adv"), folder("two", "cf_amc_ssl")]).view
    table = rows(view.manifest, view.records)
    assert view.comparable(table) is table
    assert not view.mixed


def test_the_first_page_says_where_from_and_what_differs():
    told = merge([folder("one", "simclr_adv", seeds=(0, 1)), folder("two", "cf_amc_ssl", environment=GPU)]).view.facts
    assert list(told)[:5] == ["Merged from", "What differs", "Hardware", "Commit", "torch"]
    assert told["Merged from"] == "one (2 runs), two (1 run)"
    assert told["What differs"] == "hardware, commit, torch"
    assert told["torch"] == "2.8.0 (one); 2.9.0 (two)"
    assert told["Commit"] == "0123456789ab (one); ffffffffffff (two)"
    assert told["Software"] == "bench 0.1.0, Python 3.11.9, numpy 2.2.0, torchvision 0.23.0, pyautoattack 0.2.1"
    assert told["Evaluation"] == "level quick, eps 0.05, 0.1"
    assert told["Runs"] == "2 methods, seeds 0, 1"


# ---------------------------------------------------------------- the report


@pytest.fixture
def stored(tmp_path):
    """Two run folders of two machines, with pictures; both trained one seed of cf_amc_ssl."""
    paths = []
    for place, each in enumerate(
        [folder("one", "simclr_adv", "cf_amc_ssl"), folder("two", "cf_amc_ssl", environment=GPU)]
    ):
        path = write(tmp_path / each.name, each.manifest, each.records)
        for record in each.records:
            RunFolder(path, record.spec).save_examples(examples("linear", place))
        paths.append(path)
    return paths


@pytest.mark.ci
def test_the_report_of_two_machines_has_everything(stored, tmp_path):
    out = tmp_path / "both"
    assert build_merged(stored, out) == []
    made = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert {"results.csv", "leaderboard.csv", "claims.csv", "report.pdf", "report.html"} < made
    assert "figures/accuracy_vs_cost.svg" in made
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.index("What differs") < page.index("Leaderboard</a>")
    for place in range(2):  # the pictures of each folder
        assert examples("linear", place).examples[0].adversarial in page
    text = "\n".join(page.extract_text() for page in PdfReader(out / "report.pdf").pages).replace("\u200b", "")
    assert text.index("Merged from") < text.index("What differs") < text.index("How to read the numbers")
    assert "Cost of every training run on NVIDIA H100" in text


def test_the_command_merges_and_one_folder_stays_as_it_is(stored, tmp_path):
    out = tmp_path / "both"
    with tables_only():
        done = CliRunner().invoke(cli, ["report", *map(str, stored), "--out", str(out)])
        assert done.exit_code == 0
        assert LEFT_OUT in done.output
        assert not (stored[0] / "report.pdf").exists()
        assert CliRunner().invoke(cli, ["report", str(stored[0])]).exit_code == 0
        assert build(stored[0], tmp_path / "elsewhere") == []
    assert (stored[0] / "results.csv").read_bytes() == (tmp_path / "elsewhere" / "results.csv").read_bytes()
    assert "source" not in pd.read_csv(stored[0] / "results.csv")


@pytest.mark.parametrize(
    ("out", "said"),
    [([], "expected --out DIR for a report over 2 folders"), (["--out", "one"], "which holds a run of its own")],
)
def test_mistakes_are_one_line(stored, out, said, capsys, monkeypatch):
    monkeypatch.chdir(stored[0].parent)
    with pytest.raises(SystemExit, match="2"):
        main(["report", *map(str, stored), *out])
    assert said in capsys.readouterr().err
    assert load_manifest(stored[0]).runs


def test_folders_of_one_name_are_told_apart_by_their_paths(stored, tmp_path):
    other = folder("one", "emp_ssl")
    twin = write(tmp_path / "other" / "one", other.manifest, other.records)
    with tables_only():
        assert build_merged([stored[0], twin], tmp_path / "both") == []
    assert set(pd.read_csv(tmp_path / "both" / "results.csv")["source"]) == {str(stored[0]), str(twin)}
