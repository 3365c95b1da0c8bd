"""What reports say of the code behind numbers: runs of two codes share no line, and files that differ are named."""

import pandas as pd
import pytest
from click.testing import CliRunner
from report_fixtures import manifest, records, write

import bench
from bench.cli import cli
from bench.identity.source import code
from reports import plots
from reports.build import build
from reports.codes import apart, different_files, settings
from reports.compare import compare
from reports.differences import Folder
from reports.leaderboard import different_attacks, leaderboard
from reports.merge import merge
from reports.pairs import pairs
from reports.rows import rows

OURS = {"bench/training/train.py": "1" * 16}
EVALUATION = {"head linear": {"bench/evaluation/evaluate.py": "2" * 16}}
EVALUATION |= {f"attack {name}": {"bench/evaluation/evaluate.py": "2" * 16} for name in ("none", "pgd", "autoattack")}
FIRST = {"training": OURS | {"mine.py": "a" * 16}} | EVALUATION
OTHER = {"training": OURS | {"mine.py": "b" * 16}} | EVALUATION
EVALUATED = FIRST | {"attack pgd": {"bench/evaluation/evaluate.py": "3" * 16}}


def made_by(record, sources):
    """The record as it is of a run that this code made."""
    results = [r.model_copy(update={"code": code(sources[f"attack {r.attack}"])}) for r in record.results]
    train = record.train.model_copy(update={"code": code(sources["training"])})
    return record.model_copy(update={"sources": sources, "train": train, "results": results})


def folder(name, *of_seeds, methods=("cf_amc_ssl",)):
    """Seed 0 of each method by the first of these codes, and so on."""
    asked = manifest(methods, seeds=len(of_seeds))
    found = [made_by(each, of_seeds[each.spec.seed]) for each in records(asked, diverged=())]
    return Folder(name, asked, found)


@pytest.mark.parametrize("other", [OTHER, EVALUATED])
def test_seeds_of_two_codes_share_no_line_no_mean_and_no_claim(other):
    mixed = folder("A", FIRST, other, FIRST)
    found = apart(mixed.records)
    names = [record.spec.row for record in found]
    assert names[0] == names[2] != names[1]
    assert all(name.startswith("cf_amc_ssl@") for name in names)
    board = leaderboard(table := rows(mixed.manifest, found), found, mixed.manifest.main_eps)
    assert set(zip(board["method"], board["seeds"], strict=True)) == {(names[0], 2), (names[1], 1)}
    assert len(table["code"].dropna().unique()) > 1
    assert set(pairs(found, 0.1, [(name, "linear") for name in set(names)])["a"]) <= set(names)
    assert apart(folder("A", FIRST, FIRST).records) == folder("A", FIRST, FIRST).records


def test_the_column_tells_training_head_and_attack(tmp_path):
    source = folder("A", FIRST)
    found = bench.load(write(tmp_path / "A", source.manifest, source.records)).results
    shown = found[(found["protocol"] == "linear") & (found["attack"] == "worst")]["code"].unique()
    trained, attacked = code(FIRST["training"])[:8], code(FIRST["attack pgd"])[:8]
    assert shown.tolist() == [f"{trained}.-.{attacked}+{attacked}"]  # a record without probes has no head
    untold = rows(source.manifest, records(source.manifest, diverged=()))
    assert untold["code"].isna().all()


def test_attacks_of_two_codes_are_not_ranked_together():
    """Check S1, of methods in two folders."""
    one, two = folder("one", FIRST, methods=("simclr_adv",)), folder("two", EVALUATED)
    view = merge([one, two]).view
    table = rows(view.manifest, view.records)
    assert different_attacks(table, 0.1).keys() == {"linear", "multi_patch"}
    assert leaderboard(table, view.records, 0.1)["rank_lo"].isna().all()
    same = merge([one, folder("two", OTHER)]).view  # another method file
    assert different_attacks(rows(same.manifest, same.records), 0.1) == {}


def test_a_merged_report_takes_other_code_for_another_method():
    def lines(other):
        one, two = folder("one", FIRST), folder("two", FIRST, other)
        two = Folder("two", two.manifest, two.records[1:])
        return merge([one, two]).view

    assert [record.spec.row for record in lines(FIRST).records] == ["cf_amc_ssl", "cf_amc_ssl"]
    view = lines(OTHER)
    assert [record.spec.row for record in view.records] == ["cf_amc_ssl@one", "cf_amc_ssl@two"]
    assert view.facts["What differs"] == "code: mine.py"
    assert view.facts["code: mine.py"] == "aaaaaaaa (one); bbbbbbbb (two)"


def test_compare_names_the_files_that_differ():
    found = compare(folder("A", FIRST), folder("B", OTHER))
    assert [(each.what, each.values) for each in found.differences] == [("code: mine.py", ("aaaaaaaa", "bbbbbbbb"))]
    found = compare(folder("A", FIRST, FIRST), folder("B", EVALUATED, FIRST))
    assert [each.what for each in found.differences] == ["code: bench/evaluation/evaluate.py"]
    assert {cell.note for cell in found.cells if cell.attack == "pgd" and cell.seed == 0} == {
        "the attack is of other code"
    }
    assert found.notes == ["seeds that two codes made in B, not taken together: cf_amc_ssl"]
    assert found.seeds == []


def test_files_of_a_method_are_compared_where_both_have_it():
    one, two = folder("A", FIRST, methods=("simclr",)).records, folder("B", OTHER).records
    assert different_files([one, two]) == []
    many = {"training": {f"file{n}.py": "c" * 16 for n in range(20)}} | EVALUATION
    found = different_files([one, folder("B", many, methods=("simclr",)).records])
    assert len(found) == 9
    assert found[-1] == ("14 more files", ("other", "other"))


def test_unknown_code_is_said(tmp_path):
    asked = manifest(("cf_amc_ssl",))
    unknown = Folder("B", asked, records(asked, diverged=()))
    assert different_files([folder("A", FIRST).records, unknown.records]) == [("", ("recorded", "not recorded"))]
    for name in ("A", "B"):
        write(tmp_path / name, asked, unknown.records)
    said = CliRunner().invoke(cli, ["compare", str(tmp_path / "A"), str(tmp_path / "B")]).output
    assert (
        "Same versions, commit, hardware, data, budget and settings.\nThe code that made them is not recorded." in said
    )


def test_the_settings_of_a_report_name_hashes_and_the_users_files(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "wanted", lambda *_: [])
    (record,) = folder("A", FIRST).records
    lines = settings(record)
    assert lines[0] == ["code of the training", code(FIRST["training"]), "mine.py"]
    assert lines[1] == ["code of the head linear", code(FIRST["head linear"]), "this project"]
    mixed = folder("A", FIRST, OTHER)
    assert build(write(tmp_path / "A", mixed.manifest, mixed.records)) == []
    page = (tmp_path / "A" / "report.html").read_text(encoding="utf-8")
    assert code(OTHER["training"]) in page
    assert pd.read_csv(tmp_path / "A" / "leaderboard.csv")["method"].nunique() == 2
