"""Snapshots on the way of a training and what they are worth: exact marks, off the clock, never on test images."""

import json
import re

import pytest
import torch
from evaluation_fixtures import CPU, TEST, TRAIN, tiny_encoder
from store_fixtures import RECORD, SPEC, TRAINED, spoil
from training_fixtures import Drawing, Time, constant, equal, flat, newest, on_disk, stop_after, trained, without_time

from bench.alarms import Judged, alarm, stage_share
from bench.data.images import ImageSet
from bench.evaluation import curve as curves
from bench.evaluation import search
from bench.evaluation.curve import MARKS, curve, held_out, passes_per_image
from bench.evaluation.evaluated import Evaluated
from bench.protocols.common import probe as probes
from bench.spec import EvalSpec, UsageError
from bench.storage.repair import repair
from bench.storage.store import Point, RunFolder, Snapshot
from bench.training.train import Keeper

ROBUST = EvalSpec(attacks=("pgd",), eps=(0.02,), main_eps=0.02, over_time="robust", restarts=3)


@pytest.fixture(scope="module")
def twenty(digits):
    return digits.first(20)


def taker(clock=None, marks=MARKS, taken=None):
    """(settings of a keeper that takes snapshots, what it takes: mark -> updates, seconds, weights)."""
    taken = {} if taken is None else taken

    def snapshot(mark, training):
        assert mark not in taken
        weights = {name: tensor.clone() for name, tensor in training.method.encoder.state_dict().items()}
        taken[mark] = training.clock.updates, training.clock.train_seconds, weights
        if clock is not None:
            clock.sleep(100)

    return {"marks": tuple(mark for mark in marks if mark not in taken), "snapshot": snapshot}, taken


class TestMarks:
    @pytest.mark.parametrize(
        ("budget", "duration", "expected"),
        [
            ("40s", 1.0, {10: 4, 25: 10, 50: 20, 75: 30}),
            ("40up", 3.0, {10: 4, 25: 10, 50: 20, 75: 30}),
            ("10s", 3.0, {10: 1, 25: 1, 50: 2, 75: 3}),  # one update may pass several marks
            ("10.5s", 1.0, {10: 2, 25: 3, 50: 6, 75: 8}),  # the first update past each
            ("1up", 1.0, {10: 1, 25: 1, 50: 1, 75: 1}),
        ],
    )
    @pytest.mark.parametrize("adversary", ["none", "free"])
    def test_each_is_taken_once_at_the_first_update_at_or_past_it_and_off_the_clock(
        self, adversary, budget, duration, expected, twenty
    ):
        method = flat(adversary=adversary)
        clock = Time().driven_by(method, constant(duration))
        settings, taken = taker(clock)
        result, _ = trained(method, twenty, budget, now=clock.now, keeper=Keeper(**settings))
        assert {mark: updates for mark, (updates, _, _) in taken.items()} == expected
        assert {mark: seconds for mark, (_, seconds, _) in taken.items()} == {
            mark: updates * duration for mark, updates in expected.items()
        }
        assert result.train_seconds == result.updates * duration
        assert result.paused == {"snapshot": 400.0}

    @pytest.mark.parametrize("adversary", ["none", "pgd", "free"])
    def test_taking_them_changes_no_byte(self, adversary, twenty):
        settings, taken = taker()
        with_them = trained(flat(kind=Drawing, adversary=adversary), twenty, "9up", keeper=Keeper(**settings))
        without = trained(flat(kind=Drawing, adversary=adversary), twenty, "9up")
        assert len(taken) == 4
        assert with_them[0].losses == without[0].losses
        assert equal(without_time(with_them[1]), without_time(without[1]))

    @pytest.mark.parametrize("adversary", ["none", "pgd", "free"])
    def test_a_training_that_was_stopped_between_them_takes_the_missing_ones_as_they_would_have_been(
        self, adversary, twenty, tmp_path
    ):
        settings, whole = taker()
        trained(flat(kind=Drawing, adversary=adversary), twenty, "12up", keeper=Keeper(**settings))
        method, (settings, taken) = flat(kind=Drawing, adversary=adversary), taker()
        keeper, _ = on_disk(tmp_path, stop=stop_after(method, 4), **settings)
        result, _ = trained(method, twenty, "12up", keeper=keeper)
        assert (result.status, set(taken)) == ("preempted", {10, 25})
        settings, _ = taker(taken=taken)
        again = flat(seed=9, kind=Drawing, adversary=adversary)
        trained(again, twenty, "12up", resume=newest(tmp_path), keeper=Keeper(**settings))
        assert {mark: updates for mark, (updates, _, _) in taken.items()} == {10: 2, 25: 3, 50: 6, 75: 9}
        assert all(equal(taken[mark][2], whole[mark][2]) for mark in MARKS)


# ---------------------------------------------------------------- what they are worth


def weights(seed):
    return dict(tiny_encoder(seed=seed).state_dict())


@pytest.fixture
def run(tmp_path):
    """A finished training with a snapshot at each mark."""
    run = RunFolder(tmp_path, SPEC)
    run.save_record(RECORD)
    run.save_trained(TRAINED, weights(100))
    for mark in MARKS:
        snapshot = Snapshot(percent=mark, progress=mark / 100, updates=1 + mark // 30, train_seconds=mark / 10)
        run.save_snapshot(snapshot, weights(mark))
    return run


def measure(run, spec=ROBUST, train=TRAIN, adversary="none"):
    """The marks that were measured now, with what was said of each."""
    said = []
    curve(Evaluated(tiny_encoder(seed=100), train, train, spec, 0, CPU, run, said.append), run.trained()[0], adversary)
    return {event["percent"]: event for event in said}


def test_what_the_course_warns_of_is_said_once_with_the_point_that_shows_it(run, monkeypatch):
    scores = iter([0, 0, 0, 0, 7])
    monkeypatch.setattr(curves, "score", lambda it: ((12, 12), (next(scores), 12)))
    said = {percent: event["alarm"] for percent, event in measure(run, adversary="pgd").items() if event["alarm"]}
    assert said == {
        50: "at 50 % of the budget none of 12 held-out training images stands PGD: it may be learning no robustness"
    }


def test_no_alarm_for_a_method_without_an_adversary(run, monkeypatch):
    monkeypatch.setattr(curves, "score", lambda it: ((12, 12), (0, 12)))
    assert not any(event["alarm"] for event in measure(run).values())


@pytest.mark.parametrize(
    ("course", "said"),
    [
        (
            [(10, 20), (25, 90), (50, 40), (75, 60)],
            "of 90 held-out .* at 25 % .*, 40 are left at 50 %",
        ),
        ([(50, 90), (75, 46)], ""),  # more than half
        ([(50, 8), (75, 2)], ""),  # may be chance
        ([(25, 30), (50, 0)], "none of 200"),
        ([(25, 0)], ""),
    ],
)
def test_robustness_that_was_lost_is_told_from_noise(course, said):
    seen = [Judged(percent, percent / 100, right, 200) for percent, right in course]
    assert re.search(said, alarm("nfgsm", seen)) if said else alarm("nfgsm", seen) == ""


def test_of_a_student_only_its_own_stage_is_judged():
    """Its teacher is clean, so it stands nothing: DeACL's is still there at 75 % of the budget."""
    result = TRAINED.model_copy(update={"updates": 100, "stages": [{"first_update": 0}, {"first_update": 78}]})
    shares = {percent: stage_share(result, percent) for percent in (50, 75, 100)}
    assert shares == pytest.approx({50: -28 / 22, 75: -3 / 22, 100: 1.0})
    assert alarm("pgd", [Judged(percent, share, 0, 200) for percent, share in shares.items() if percent < 100]) == ""
    assert "at 100 %" in alarm("pgd", [Judged(percent, share, 0, 200) for percent, share in shares.items()])


def test_a_snapshot_that_cannot_be_scored_is_missing_and_is_tried_again(run, monkeypatch):
    def broken(it):
        raise FloatingPointError("features are not finite")

    said = []
    with monkeypatch.context() as patch:
        patch.setattr(curves, "score", broken)
        missing = curve(
            Evaluated(tiny_encoder(seed=100), TRAIN, TRAIN, ROBUST, 0, CPU, run, said.append), TRAINED, "pgd"
        )
    assert missing.startswith("accuracy over the training at 10 % (FloatingPointError: features are not finite); 25 %")
    assert said == []
    assert run.curve() == []
    assert list(measure(run)) == [*MARKS, 100]


def test_every_moment_has_a_point_with_its_cost_and_none_is_measured_twice(run):
    assert list(measure(run)) == [*MARKS, 100]
    points = run.curve()
    assert [p.snapshot.updates for p in points] == [1, 1, 2, 3, TRAINED.updates]
    assert [p.snapshot.train_seconds for p in points] == [1.0, 2.5, 5.0, 7.5, TRAINED.train_seconds]
    # 8 passes of three kinds for each image and epoch; 4 updates were 2 epochs
    assert [p.passes_per_image for p in points] == pytest.approx([12.0, 12.0, 24.0, 36.0, 48.0])
    assert {(p.clean[1], p.robust[1], p.eps) for p in points} == {(12, 12, 0.02)}
    assert all(p.robust[0] <= p.clean[0] for p in points)
    assert measure(run) == {}
    assert run.curve() == points
    run.save_curve([points[0], points[3]])
    assert list(measure(run)) == [25, 50, 100]
    unchanged = [point.model_dump(exclude={"seconds"}) for point in points]
    assert [point.model_dump(exclude={"seconds"}) for point in run.curve()] == unchanged


def test_clean_runs_no_attack_and_off_measures_nothing(run):
    assert measure(run, ROBUST.model_copy(update={"over_time": "off"})) == {}
    assert not (run.path / "curve.json").exists()
    measure(run, ROBUST.model_copy(update={"over_time": "clean"}))
    assert {p.robust for p in run.curve()} == {None}


def test_the_images_are_every_fifth_training_image_and_the_same_at_every_mark(run, monkeypatch):
    seen, features = [], []
    call, fit = search.Search.__call__, probes.fit_probe

    def watched(self, images, ids, standing, number):
        found = call(self, images, ids, standing, number)
        seen.append((self.name, self.attack, images.images[ids], found[2]))
        return found

    monkeypatch.setattr(search.Search, "__call__", watched)
    monkeypatch.setattr(
        probes, "fit_probe", lambda x, labels, k: features.append((len(x), labels)) or fit(x, labels, k)
    )
    monkeypatch.setattr(curves, "IMAGES", 7)
    measure(run)
    expected = TRAIN.images[4::5]
    clean = [images for name, _, images, _ in seen if name == "none"]
    attacked = [images for name, _, images, _ in seen if name == "pgd"]
    assert len(clean) == len(attacked) == 5
    assert all(torch.equal(images, expected) for images in clean)
    assert all(torch.equal(images, expected[:7]) for images in attacked)
    assert {attack.restarts for name, attack, _, _ in seen if name == "pgd"} == {1}
    rest = TRAIN.labels[~held_out(len(TRAIN))]
    assert all(count == 48 and torch.equal(labels, rest) for count, labels in features)
    tests = {image.numpy().tobytes() for image in TEST.images}
    assert not tests & {image.numpy().tobytes() for image in expected}


def test_the_same_weights_get_the_same_counts_at_every_mark(run):
    for mark in MARKS:
        run.save_snapshot(run.snapshot(mark)[0], weights(100))
    measure(run)
    assert len({(p.clean, p.robust) for p in run.curve()}) == 1


def test_labels_that_the_encoder_can_tell_are_told(run):
    """Ten flat images of different brightness: any encoder tells them apart, and the judge says so."""
    grey = (torch.arange(200) % 2)[:, None, None, None].expand(-1, 3, 16, 16).mul(200).byte().contiguous()
    noise = torch.randint(0, 20, grey.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    measure(run, train=ImageSet(grey + noise, torch.arange(200) % 2, 2, "grey"))
    assert {p.clean for p in run.curve()} == {(40, 40)}


def test_passes_follow_from_updates():
    more = TRAINED.model_copy(update={"updates": 8, "epochs": 4.0})
    assert passes_per_image(TRAINED) == passes_per_image(more) == 12.0


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("harm", [spoil, lambda file: file.write_bytes(b"")], ids=["spoilt", "emptied"])
def test_a_damaged_curve_is_put_aside_and_made_again(run, harm):
    measure(run)
    before = [point.model_dump(exclude={"seconds"}) for point in run.curve()]
    harm(run.path / "curve.json")
    with pytest.raises(UsageError):
        run.curve()
    (damage,) = repair(run)
    assert damage.path == run.path / "curve.json"
    assert (run.path / "curve.json.damaged").exists()
    assert list(measure(run)) == [*MARKS, 100]
    assert [point.model_dump(exclude={"seconds"}) for point in run.curve()] == before
    assert repair(run) == []


def test_a_damaged_snapshot_leaves_a_gap_and_what_was_measured_of_it_stays(run):
    measure(run)
    spoil(run.path / "snapshots" / "25.safetensors")
    (damage,) = repair(run)
    assert damage.path.name == "25.safetensors"
    assert run.snapshot(25) is None
    assert len(run.curve()) == 5
    run.put_aside("curve.json")
    assert list(measure(run)) == [10, 50, 75, 100]


def test_a_damaged_encoder_takes_its_snapshots_and_its_curve_with_it(run):
    measure(run)
    spoil(run.path / "encoder.safetensors")
    repair(run)
    assert (run.curve(), run.names("snapshots")) == ([], [])


@pytest.mark.ci
def test_a_run_takes_its_snapshots_and_draws_its_curve(tmp_path):
    from bench.runs.execute import execute
    from bench.spec import Budget, DataSpec, RunSpec
    from bench.storage.signals import StopFlag

    spec = RunSpec(
        method="simclr",
        data=DataSpec(name="synthetic", test_images=16),
        budget=Budget(amount=8, unit="updates"),
        settings={"batch": 6, "feature_width": 16, "hidden_width": 16, "embedding_width": 8},
        encoder="resnet8",
        threads=1,
        eval=EvalSpec(attacks=("none",), eps=(0.1,), protocols=("linear",), curve=(), audit="off", over_time="clean"),
    )
    execute(tmp_path, spec, lambda event: None, StopFlag())
    run = RunFolder(tmp_path, spec)
    assert [(p.snapshot.percent, p.snapshot.updates) for p in run.curve()] == [
        (10, 1),
        (25, 2),
        (50, 4),
        (75, 6),
        (100, 8),
    ]
    assert run.curve()[-1].snapshot.sha256 == run.trained()[0].encoder_sha256
    first = (run.path / "curve.json").read_bytes()
    assert all(isinstance(Point.model_validate(each), Point) for each in json.loads(first)["points"])
    (run.path / "curve.json").unlink()
    execute(tmp_path, spec, lambda event: None, StopFlag())
    assert [(p.clean, p.snapshot) for p in run.curve()] == [
        (Point.model_validate(each).clean, Point.model_validate(each).snapshot) for each in json.loads(first)["points"]
    ]
