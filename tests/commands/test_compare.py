"""Two folders side by side: McNemar and Holm by hand, what may not be paired or timed, and what the command shows."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from report_fixtures import DIGITS, MACHINE, manifest, records, result, write
from scipy.stats import binomtest, ttest_ind

from bench.cli import cli, main
from bench.record import Setting
from bench.spec import UsageError
from reports.compare import compare
from reports.differences import Folder, differences

METHODS = ("simclr_adv", "cf_amc_ssl")
FASTER = MACHINE.model_copy(update={"device_name": "NVIDIA H100", "device": "cuda:0", "torch": "2.9.0"})


def folder(name="A", methods=METHODS, seeds=1, **machine):
    asked = manifest(methods, seeds=seeds)
    return Folder(name, asked, records(asked, diverged=()))


def changed(folder, name="B", only=None, **update):
    """The folder with records updated: values, or functions of the record."""
    found = [
        record.model_copy(update={k: v(record) if callable(v) else v for k, v in update.items()})
        if only is None or record.spec.row == only
        else record
        for record in folder.records
    ]
    return Folder(name, folder.manifest, found)


def flipped(attack, places):
    """The results of a record whose ``attack`` breaks the images at ``places``."""

    def results(record):
        return [
            each.model_copy(
                update={"outcomes": "".join("0" if i in places else c for i, c in enumerate(each.outcomes))}
            )
            if each.attack == attack
            else each
            for each in record.results
        ]

    return results


def cell(found, method, protocol, attack, eps=0.0):
    (only,) = [c for c in found.cells if (c.method, c.protocol, c.attack, c.eps) == (method, protocol, attack, eps)]
    return only


def test_a_folder_with_itself_differs_in_nothing():
    found = compare(folder("A", seeds=3), folder("B", seeds=3))
    assert found.differences == []
    assert found.notes == []
    assert {(c.difference, c.lo, c.hi, c.h, c.p, c.adjusted) for c in found.cells} == {(0, 0, 0, 0, 1, 1)}
    assert {(s.difference, s.superiority) for s in found.seeds} == {(0.0, 0.5)}
    assert {c.ratio for c in found.costs} == {1.0}
    assert not any(line.differs for line in [*found.cells, *found.seeds])


def test_a_cell_is_the_exact_mcnemar_test_on_the_same_images():
    a = folder()
    bits = next(r for r in a.records[0].results if (r.protocol, r.attack) == ("linear", "none")).outcomes
    broken = [i for i, bit in enumerate(bits) if bit == "1"][:20]
    found = compare(a, changed(a, only="simclr_adv", results=flipped("none", broken)))
    moved = cell(found, "simclr_adv", "linear", "none")
    assert (moved.only_a, moved.only_b) == (20, 0)
    assert moved.p == pytest.approx(binomtest(0, 20).pvalue)
    assert moved.difference == pytest.approx(-20 / 360)
    assert moved.lo < moved.difference < moved.hi < 0
    assert moved.h == pytest.approx(2 * (np.arcsin(moved.b.accuracy**0.5) - np.arcsin(moved.a.accuracy**0.5)))
    assert moved.adjusted == pytest.approx(moved.p * len(found.cells))  # Holm's first step over all
    assert moved.differs
    assert not cell(found, "cf_amc_ssl", "linear", "none").differs


def test_what_follows_from_pgd_is_tested_once():
    """``worst`` is a number of its own, ``pgd_only`` repeats PGD, and a curve is drawn, not asked for."""
    a = folder(methods=("cf_amc_ssl",))
    keys = [(c.protocol, c.attack, c.eps) for c in compare(a, a).cells]
    assert keys == [
        *[(p, attack, eps) for p in ("linear", "multi_patch")
          for attack, eps in (("none", 0.0), ("pgd", 0.05), ("pgd", 0.1), ("autoattack", 0.1), ("worst", 0.1))],
        *[("published_eval", attack, eps) for attack, eps in (("none", 0.0), ("pgd", 0.05), ("pgd", 0.1))],
    ]  # fmt: skip


def test_other_images_are_not_paired():
    a = folder()
    other = DIGITS.model_copy(update={"test_sha256": "c" * 64})
    found = compare(a, changed(a, data=other))
    assert {(c.only_a, c.p, c.adjusted, c.note) for c in found.cells} == {
        (None, None, None, "other test images: not paired, no test")
    }
    moved = cell(found, "cf_amc_ssl", "linear", "none")
    assert -moved.lo == pytest.approx(moved.hi)
    assert moved.hi == pytest.approx(np.hypot(moved.a.accuracy - moved.a.lo, moved.a.hi - moved.a.accuracy))


def test_fewer_images_and_other_attacks_are_said():
    a = folder(methods=("cf_amc_ssl",))
    short = [result("linear", "pgd", 0.1, "1" * 100, config_hash="other")]
    moved = cell(compare(a, changed(a, results=short)), "cf_amc_ssl", "linear", "pgd", 0.1)
    assert (moved.a.total, moved.b.total) == (100, 100)
    assert moved.note == "the attack has other settings; on the first 100 images, which both attacked"


def test_seeds_are_welchs_test_of_the_trainings():
    a, b = folder(seeds=3), folder("B", seeds=4)
    b = changed(b, results=flipped("none", range(0, 360, 9)))
    found = compare(a, b)
    line = next(s for s in found.seeds if (s.method, s.protocol, s.attack) == ("cf_amc_ssl", "linear", "none"))
    ours, theirs = (
        [r.correct / r.total for record in f.records if record.spec.row == "cf_amc_ssl" for r in record.results
         if (r.protocol, r.attack) == ("linear", "none")]
        for f in (a, b)
    )  # fmt: skip
    assert line.seeds == (3, 4)
    assert line.p == pytest.approx(ttest_ind(theirs, ours, equal_var=False).pvalue)
    assert line.difference == pytest.approx(np.mean(theirs) - np.mean(ours))
    assert line.superiority == np.mean([[t > o for o in ours] for t in theirs])
    assert found.notes == ["only in B: simclr_adv-s3, cf_amc_ssl-s3"]


def test_seeds_that_no_folder_shares_are_compared_as_trainings_alone():
    a = folder(seeds=4)
    early, late = (Folder(n, a.manifest, [r for r in a.records if (r.spec.seed < 2) == (n == "A")]) for n in "AB")
    found = compare(early, late)
    assert found.cells == []
    assert {s.seeds for s in found.seeds} == {(2, 2)}


def test_times_need_one_class_of_hardware():
    a, slow = folder(seeds=2), lambda record: record.train.model_copy(update={"train_seconds": 120.0})
    found = {c.what: c for c in compare(a, changed(a, train=slow)).costs if c.method == "cf_amc_ssl"}
    ours = [r.train.train_seconds for r in a.records if r.spec.row == "cf_amc_ssl"]
    assert found["training time"].ratio == pytest.approx(120 / np.median(ours))
    assert found["training time"].lo <= found["training time"].ratio <= found["training time"].hi
    assert "energy" not in found  # nothing measured it
    other = {c.what: c for c in compare(a, changed(a, environment=FASTER)).costs if c.method == "cf_amc_ssl"}
    assert {what for what, c in other.items() if c.ratio is None} == {
        "training time",
        "time of an update",
        "peak memory",
    }
    assert other["passes per image"].ratio == 1.0
    note = other["training time"].note
    assert note.startswith("not compared: different hardware: AMD EPYC 9654")
    assert "against NVIDIA H100" in note


def test_the_time_of_a_run_with_extra_data_is_compared_with_nobodys():
    a, given = folder(seeds=2), lambda record: record.train.model_copy(update={"extra_data": "a given teacher, 01"})
    found = compare(a, changed(a, only="cf_amc_ssl", train=given))
    costs = {(cost.method, cost.what): cost for cost in found.costs}
    assert costs["cf_amc_ssl", "training time"].note == "not compared: what its extra data has cost is not known"
    assert costs["cf_amc_ssl", "training time"].ratio is None
    assert costs["simclr_adv", "training time"].ratio == 1.0
    assert "with extra data in B: cf_amc_ssl" in found.notes


def test_what_differs_is_said_by_name():
    a = folder()
    louder = lambda record: [*record.settings[:-1], Setting(name="train_eps", value=0.2, source="--set")]  # noqa: E731
    b = changed(changed(a, environment=FASTER), only="cf_amc_ssl", settings=louder)
    found = {each.what: each.values for each in differences([a, b])}
    assert found == {
        "torch": ("2.8.0", "2.9.0"),
        "hardware": tuple(f"{name}, {MACHINE.cpu}, 2 cores, 2 threads" for name in ("AMD EPYC 9654", "NVIDIA H100")),
        "cf_amc_ssl.train_eps": ("0.1", "0.2"),
    }  # fmt: skip
    full = Folder("C", manifest(METHODS, level="full"), a.records)
    assert [(d.what, d.values) for d in differences([a, full])] == [("evaluation: level", ("quick", "full"))]


def test_nothing_in_common_is_refused():
    with pytest.raises(
        UsageError, match=r"nothing to compare: A and B have no cell in common.*simclr-s0 against emp_ssl"
    ):
        compare(folder("A", ("simclr",)), folder("B", ("emp_ssl",)))


def test_a_run_that_ended_otherwise_is_named():
    a = folder()
    assert compare(a, changed(a, only="simclr_adv", status="diverged")).notes == [
        "simclr_adv-s0: finished in A, diverged in B"
    ]


# ---------------------------------------------------------------- the command


@pytest.fixture
def pair(tmp_path):
    a = folder(seeds=2)
    b = changed(changed(a, only="cf_amc_ssl", results=flipped("none", range(40))), environment=FASTER)
    return [str(write(tmp_path / each.name, each.manifest, each.records)) for each in (a, b)]


def test_the_command_shows_what_differs_first_and_counts_at_the_end(pair):
    done = CliRunner().invoke(cli, ["compare", *pair])
    assert done.exit_code == 0
    order = [
        "What differs",
        "2.9.0",
        "simclr_adv, linear: two checkpoints",
        "trainings over seeds",
        "Cost",
        "Of 52 tested",
    ]
    assert [done.output.index(text) for text in order] == sorted(done.output.index(text) for text in order)
    assert "training time, time of an update, peak memory: not compared: different hardware" in done.output
    assert "checkpoints B is better in 0 and worse in 6 (Holm, 0.05)" in done.output
    assert max(map(len, done.output.splitlines()[:40])) <= 120


def test_json_is_one_document(pair):
    document = json.loads(CliRunner().invoke(cli, ["compare", *pair, "--json"]).output)
    assert list(document) == ["a", "b", "differences", "notes", "cells", "seeds", "costs"]
    assert len(document["cells"]) == 52
    assert {line["p"] is None for line in document["cells"]} == {False}


@pytest.mark.parametrize("wrong", ["no such folder", "a damaged manifest"])
def test_a_folder_that_is_none_is_one_line(pair, tmp_path, capsys, wrong):
    if wrong == "a damaged manifest":
        (tmp_path / "B" / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SystemExit, match="2"):
        main(["compare", pair[0], pair[1] if wrong == "a damaged manifest" else str(tmp_path / "none")])
    assert len(capsys.readouterr().err.splitlines()) == 1
