"""A training that was stopped and goes on from the disk ends in the bytes of one that was never stopped."""

import random
import time

import numpy as np
import pytest
import torch
from audit_fixtures import classifier, finished, rerun, short_autoattack
from training_fixtures import (
    Drawing,
    Time,
    but_for,
    constant,
    equal,
    flat,
    newest,
    on_disk,
    stop_after,
    told,
    trained,
    without_time,
)

from attacks import autoattack
from bench.spec import ThreatModel
from bench.training.train import Keeper


@pytest.fixture(scope="module")
def twenty(digits):
    return digits.first(20)


def interrupted(make, images, updates, after, folder):
    """make(0) trained with an interruption after each of these numbers of updates, and gone on with in make(9)."""
    method, state, done = make(0), None, 0
    for n in after:
        keeper, at = on_disk(folder, stop=stop_after(method, n - done))
        result, end = trained(method, images, f"{updates}up", resume=state, keeper=keeper)
        assert (result.status, result.updates, at[-1]) == ("preempted", n, n)
        assert result.progress == n / updates
        method, state, done = make(9), newest(folder), n  # other first weights: all have to be loaded
        assert equal(state, end)
    return trained(method, images, f"{updates}up", resume=state)


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("emp_ssl_adv", [3]),  # at the end of an epoch
        ("cf_amc_ssl", [2, 6]),  # in the middle of the replays, after the last of them
    ],
)
def test_is_bitwise_the_uninterrupted_run(name, after, tiny, twenty, tmp_path):
    whole, state = trained(tiny(name), twenty, "8up")
    resumed, again = interrupted(lambda seed: tiny(name, seed=seed), twenty, 8, after, tmp_path)
    assert (resumed.status, resumed.updates, resumed.preemptions) == ("finished", 8, len(after))
    assert told(resumed) == told(whole)
    assert equal(without_time(again), without_time(state))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_under_another_optimizer(optimizer, twenty, tmp_path):
    """Its moments are in the checkpoint; the learning rate rises for the first updates."""
    whole, state = trained(flat(optimizer=optimizer, warm_up=0.5), twenty, "6up")
    make = lambda seed: flat(seed, optimizer=optimizer, warm_up=0.5)  # noqa: E731
    resumed, again = interrupted(make, twenty, 6, [2, 4], tmp_path)
    assert (told(resumed), resumed.preemptions) == (told(whole), 2)
    assert equal(without_time(again), without_time(state))


@pytest.mark.parametrize("adversary", ["none", "pgd", "free"])
def test_after_every_update(adversary, twenty, tmp_path):
    """With batch norm; Drawing draws from the generators of torch, numpy and Python, and keeps a buffer."""
    whole, state = trained(flat(kind=Drawing, adversary=adversary), twenty, "8up")
    make = lambda seed: flat(seed, kind=Drawing, adversary=adversary)  # noqa: E731
    resumed, again = interrupted(make, twenty, 8, list(range(1, 8)), tmp_path)
    assert (told(resumed), resumed.preemptions) == (told(whole), 7)
    assert equal(without_time(again), without_time(state))


def test_of_a_budget_in_time_goes_on_with_its_seconds(twenty, tmp_path):
    whole, ours = flat(adversary="free"), flat(adversary="free")
    uninterrupted, state = trained(whole, twenty, "10s", now=Time().driven_by(whole, constant(1.0)).now)
    keeper, at = on_disk(tmp_path, stop=stop_after(ours, 4))
    result, _ = trained(ours, twenty, "10s", now=Time().driven_by(ours, constant(1.0)).now, keeper=keeper)
    assert (result.status, result.train_seconds, result.progress, at) == ("preempted", 4.0, 0.4, [0, 4])
    again = flat(9, adversary="free")
    # another machine, whose clock began elsewhere; compiling once more is not charged
    clock = Time(nanoseconds=5).driven_by(again, constant(1.0, warm_up=1000.0))
    resumed, end = trained(again, twenty, "10s", now=clock.now, resume=newest(tmp_path))
    assert (resumed.updates, resumed.train_seconds) == (uninterrupted.updates, uninterrupted.train_seconds)
    assert (resumed.updates, resumed.train_seconds) == (10, 10.0)
    assert equal(but_for(end, "spent", "preemptions"), but_for(state, "spent", "preemptions"))


def test_a_stop_at_the_very_end_is_the_end(twenty):
    method = flat()
    result, state = trained(method, twenty, "6up", keeper=Keeper(stop=stop_after(method, 6)))
    assert (result.status, result.updates, result.progress) == ("finished", 6, 1.0)
    assert equal(without_time(state), without_time(trained(flat(), twenty, "6up")[1]))


def test_a_finished_run_stays_as_it_is(twenty):
    _, state = trained(flat(), twenty, "6up")
    result, again = trained(flat(9), twenty, "6up", resume=state)
    assert (result.status, result.updates) == ("finished", 6)
    assert equal(but_for(again, "preemptions"), but_for(state, "preemptions"))


class TestWhatAKillCosts:
    def test_preemptions_and_lost_seconds_add_up_and_are_not_charged(self, twenty, tmp_path):
        state = None
        for n, lost in enumerate([0.0, 2.5, 0.5]):
            method = flat()
            keeper, _ = on_disk(tmp_path, stop=stop_after(method, 3))
            now = Time().driven_by(method, constant(1.0)).now
            result, _ = trained(method, twenty, "20s", now=now, resume=state, lost_seconds=lost, keeper=keeper)
            assert (result.preemptions, result.lost_seconds) == (n, [0.0, 2.5, 3.0][n])
            assert (result.updates, result.train_seconds) == (3 * n + 3, 3.0 * n + 3)
            state = newest(tmp_path)
        assert (state["preemptions"], state["lost_seconds"]) == (2, 3.0)

    def test_a_run_that_is_killed_again_before_its_next_checkpoint_counts_both(self, twenty, tmp_path):
        method = flat()
        keeper, _ = on_disk(tmp_path, stop=stop_after(method, 3))
        trained(method, twenty, "9up", keeper=keeper)
        for n in (1, 2):
            method, (keeper, at) = flat(), on_disk(tmp_path)
            method.augment = dying(method.augment, after=2)
            with pytest.raises(KeyboardInterrupt):
                trained(method, twenty, "9up", resume=newest(tmp_path), lost_seconds=1.5, keeper=keeper)
            assert at == [3]
            assert (newest(tmp_path)["preemptions"], newest(tmp_path)["lost_seconds"]) == (n, 1.5 * n)

    def test_the_clock_on_the_wall_is_not_asked(self, twenty, monkeypatch):
        def asked():
            raise AssertionError("the time of day")

        monkeypatch.setattr(time, "time", asked)
        assert trained(flat(), twenty, "3up")[0].status == "finished"


def dying(function, after):
    """The function, ended by KeyboardInterrupt after so many calls."""
    calls = []

    def called(*arguments):
        calls.append(0)
        if len(calls) > after:
            raise KeyboardInterrupt
        return function(*arguments)

    return called


class TestWhatRunsInBetween:
    """Promise P6: the generators of the training are its own."""

    def alone(self, images):
        """The end of a training with nothing in between."""
        return trained(flat(kind=Drawing, adversary="free"), images, "8up")[1]

    @pytest.mark.ci
    def test_autoattack_and_an_audit_change_nothing(self, twenty, tmp_path):
        run, spec = finished(tmp_path)
        method, done = flat(kind=Drawing, adversary="free"), []

        def evaluate(event):
            if event["updates"] == 3:
                threat, images = ThreatModel(eps=0.05), torch.rand(4, 3, 16, 16, generator=torch.Generator())
                with short_autoattack():
                    attack = autoattack.Attack().stages(10, 4)["apgd-ce"]
                    attack.perturb(classifier(), images, torch.arange(4), threat, torch.Generator())
                    done.append(rerun(run, spec))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bench.training.train.REPORT_EVERY", 0.0)
            _, state = trained(method, twenty, "8up", keeper=Keeper(report=evaluate))
        assert done == [""]
        assert len(run.audits()) == 1
        assert equal(without_time(state), without_time(self.alone(twenty)))

    @pytest.mark.parametrize("draw", [lambda: torch.rand(1), np.random.rand, random.random])
    def test_a_draw_in_between_would_be_seen(self, draw, twenty):
        method = flat(kind=Drawing, adversary="free")
        _, state = trained(method, twenty, "8up", keeper=Keeper(report=lambda event: draw()))
        assert not equal(without_time(state), without_time(self.alone(twenty)))
