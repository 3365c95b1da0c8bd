"""The search over rounds, with trainings that are made of plain numbers: what is kept, and how it goes on."""

import math

import pytest
from report_fixtures import result
from tuning_fixtures import SPACE

from bench.record import Record
from bench.spec import Budget, DataSpec, EvalSpec, RunSpec, UsageError
from bench.storage.files import read
from bench.tuned import FILE, SEED, Tuning
from bench.tuning.search import as_trial, asked_of, search, trial_of
from bench.tuning.space import Ground

PUBLISHED = {"lr": 0.3, "temperature": 0.07}


def specs(*methods):
    data = DataSpec(name="digits", held_out=True)
    runs = [
        RunSpec(method=method, data=data, seed=3, budget=Budget.parse("150up"), eval=EvalSpec()) for method in methods
    ]
    return [as_trial(run) for run in runs]


def record(spec, status="finished"):
    """Of a training that is worth most at lr 1.5: 40 of 50 images clean, up to 30 of the first 40 under PGD."""
    if status != "finished":
        return Record(spec=spec, status=status)
    lr = spec.settings.get("lr", PUBLISHED["lr"])
    robust = max(0, round(30 - 10 * abs(math.log(lr / 1.5))))
    cells = [("none", 0.0, "1" * 40 + "0" * 10), ("pgd", 0.1, "1" * robust + "0" * (40 - robust))]
    return Record(spec=spec, status=status, results=[result("linear", *cell) for cell in cells])


def searched(out, trials, make_round, methods=("simclr", "emp_ssl"), objective="robust", sampler_seed=0):
    runs = specs(*methods)
    grounds = {run.row: Ground(SPACE, PUBLISHED) for run in runs}
    question = {"objective": objective, "sampler_seed": sampler_seed, "dataset": "digits", "encoder": "resnet8"}
    asked = asked_of(runs, grounds, trials=trials, **question)
    return search(out, runs, grounds, asked, make_round)


def test_every_method_gets_the_same_trials_and_the_first_is_as_published(tmp_path):
    asked = []

    def make_round(folder, runs):
        asked.append((folder.name, [run.settings for run in runs]))
        return [record(run) for run in runs]

    found = searched(tmp_path, 6, make_round)
    assert [name for name, _ in asked] == ["00", "01", "02", "03", "04", "05"]
    assert asked[0][1] == [{}, {}]
    for _, (a, b) in asked[1:3]:  # one seed of the sampler: nothing but their results tells methods apart
        assert a == b != {}
    assert {len(s.trials) for s in found.searches.values()} == {6}
    assert found.searches["simclr"].trials[0].settings == PUBLISHED
    assert read(Tuning, tmp_path / FILE) == found


def test_a_trial_is_judged_on_held_out_images_and_with_a_seed_of_its_own():
    (run,) = specs("simclr")
    assert (run.seed, run.data.held_out) == (SEED, True)
    assert (run.eval.eps, run.eval.curve) == ((0.1,), ())  # nothing is paid for that does not count


def test_the_images_that_pgd_attacked_are_counted(tmp_path):
    trial = trial_of(record(specs("simclr")[0]), PUBLISHED)
    assert (trial.clean, trial.robust, trial.total) == (40, 14, 40)


@pytest.mark.parametrize("status", ["diverged", "oom"])
def test_a_training_that_came_to_no_encoder_is_worth_nothing(status):
    trial = trial_of(record(specs("simclr")[0], status), PUBLISHED)
    assert (trial.value("robust"), trial.value("clean"), trial.status) == (0.0, 0.0, status)


def test_without_pgd_there_is_no_trial():
    bare = record(specs("simclr")[0]).model_copy(update={"results": []})
    with pytest.raises(UsageError, match="expected clean images and PGD of simclr-s1000, got nothing"):
        trial_of(bare, PUBLISHED)


@pytest.mark.parametrize("status", ["failed", "preempted", "pending"])
def test_a_training_that_did_not_end_stops_the_search_which_then_goes_on_as_if_nothing_had_happened(tmp_path, status):
    def make_round(folder, runs):
        ends = [status if folder.name == "03" and run.method == "emp_ssl" else "finished" for run in runs]
        return [record(run, end) for run, end in zip(runs, ends, strict=True)]

    def undisturbed(folder, runs):
        return [record(run) for run in runs]

    stopped = searched(tmp_path / "a", 6, make_round)
    assert {len(s.trials) for s in stopped.searches.values()} == {3}
    assert not stopped.done
    assert searched(tmp_path / "a", 6, undisturbed) == searched(tmp_path / "b", 6, undisturbed)
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()


def made(folder, runs):
    return [record(run) for run in runs]


def test_more_trials_go_on_with_a_search_and_fewer_are_refused(tmp_path):
    assert searched(tmp_path, 3, made).done
    four = searched(tmp_path, 4, made)
    assert four == searched(tmp_path / "fresh", 4, made)
    with pytest.raises(UsageError, match=r"expected --trials of at least 4, as .* has them, got 3"):
        searched(tmp_path, 3, made)
    assert read(Tuning, tmp_path / FILE) == four


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"objective": "clean"}, "objective: robust there, clean now"),
        ({"sampler_seed": 7}, "sampler_seed: 0 there, 7 now"),
        ({"methods": ("simclr", "byol")}, "emp_ssl.method: emp_ssl there, none now"),
    ],
)
def test_another_search_is_refused_and_costs_nothing(tmp_path, changed, said):
    found = searched(tmp_path, 2, made)
    with pytest.raises(UsageError, match=rf"holds another search \({said}.*\); choose another --out"):
        searched(tmp_path, 2, made, **changed)
    assert read(Tuning, tmp_path / FILE) == found


@pytest.mark.parametrize("lost", [{"status": "failed"}, {"missing": "2 of 2 cells"}])
def test_a_round_that_has_to_be_made_again_does_not_shorten_the_file(tmp_path, lost):
    found = searched(tmp_path, 3, made)

    def damaged(folder, runs):
        return [record(run).model_copy(update=lost if folder.name == "01" else {}) for run in runs]

    assert {len(s.trials) for s in searched(tmp_path, 3, damaged).searches.values()} == {1}
    assert read(Tuning, tmp_path / FILE) == found


def test_a_damaged_file_is_made_again_from_the_rounds(tmp_path):
    found = searched(tmp_path, 3, made)
    (tmp_path / FILE).write_bytes(b"{}")
    assert searched(tmp_path, 3, made) == found == read(Tuning, tmp_path / FILE)
