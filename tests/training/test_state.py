"""The saved state of a training: every field of it is needed, and says so where it is missing (promise P8)."""

import copy
import itertools
import re
import time

import pytest
import torch
from training_fixtures import CPU, Drawing, Time, equal, flat, newest, on_disk, stop_after, trained

from bench.spec import Budget, UsageError
from bench.storage.checkpoint import load_generation
from bench.training.state import Undo, begun

LOADED_AT_ONCE = re.compile(r"method\.(?!teacher$|encoder\.layers\.1\.weight$|encoder\.layers\.2\.running_var$)")
SAME_ANYWAY = {  # what a new training makes as it was
    "generators.cuda",  # of a GPU
    "optimizer.param_groups",  # settings; the learning rate is set before each step
    "costs",  # of one stage: what the clock has; of several see tests/methods/test_plugin_methods.py
    "first_epoch",
}


def run(folder, images, seed=0, stop=None, **settings):
    """(result, end, updates of what was saved) of 14 s of training, each second told; saving takes 2 s."""
    method, clock = flat(seed, kind=Drawing, adversary="free", clamp_carried=False), Time()
    clock.driven_by(method, itertools.chain([5.0], itertools.count(0.5, 0.0625)))
    keeper, at = on_disk(folder, every=1.0, stop=stop_after(method, stop) if stop else lambda: False)
    save = keeper.save
    object.__setattr__(keeper, "save", lambda state: (clock.sleep(2), save(state)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: clock.now() / 1e9)  # of the phases
        result, end = trained(method, images, "14s", seed, now=clock.now, keeper=keeper, **settings)
    return result.model_dump(exclude={"peak_memory_bytes"}), end, at


@pytest.fixture(scope="module")
def scene(digits, tmp_path_factory):
    """(images, a state in the middle of the replays after two preemptions, that of a new training, how it ends)."""
    folder, images = tmp_path_factory.mktemp("run"), digits.first(20)
    run(folder, images, stop=4)
    run(folder, images, stop=4, resume=newest(folder), lost_seconds=1.5)
    state = newest(folder)
    other = tmp_path_factory.mktemp("other")
    run(other, images, seed=5, stop=1)
    fresh = load_generation(min(other.iterdir()))
    return images, state, fresh, run(other, images, resume=copy.deepcopy(state))


def fields(state, path=""):
    """The path of every field, down to single tensors of the method and single generators."""
    for key, value in state.items():
        yield f"{path}{key}"
        if isinstance(value, dict) and f"{path}{key}" in ("method", "optimizer", "generators"):
            yield from fields(value, f"{path}{key}.")


def example():
    """A state with the fields of ``scene``'s."""
    method = flat(kind=Drawing, adversary="free")
    return training_of(method).state()


def training_of(method):
    return begun(method, 8, Budget.parse("9up"), CPU)


def parent(state, path):
    """(the dictionary that the field is in, its key there)."""
    first, _, rest = path.partition(".")
    return (state[first], rest) if rest else (state, first)


FIELDS = list(fields(example()))


def test_the_state_has_these_fields():
    top = "method optimizer schedule delta generators costs first_epoch updates seconds durations paused losses spent"
    assert [field for field in FIELDS if "." not in field] == [*top.split(), "preemptions", "lost_seconds"]
    assert {f for f in FIELDS if f.startswith("generators.")} == {
        f"generators.{name}" for name in ("python", "numpy", "torch", "cuda")
    }
    assert {"method.teacher", "method.encoder.layers.2.running_var", "optimizer.state"} < set(FIELDS)


@pytest.mark.parametrize("field", FIELDS)
def test_one_that_is_missing_is_refused_by_its_name(field):
    state = copy.deepcopy(example())
    inside, key = parent(state, field)
    del inside[key]
    method = flat(9, kind=Drawing, adversary="free")
    before = copy.deepcopy(method.state_dict())
    with pytest.raises(UsageError, match=re.escape(key)) as error:
        training_of(method).load(state)
    assert "\n" not in str(error.value)
    assert equal(dict(method.state_dict()), dict(before)) or not field.startswith(("method", "generators"))


@pytest.mark.parametrize("inside", ["", "method", "generators"])
def test_one_that_is_not_known_is_refused_by_its_name(inside):
    state = copy.deepcopy(example())
    (state[inside] if inside else state)["unheard_of"] = torch.zeros(1)
    with pytest.raises(UsageError, match="unheard_of"):
        training_of(flat(kind=Drawing, adversary="free")).load(state)


@pytest.mark.ci
@pytest.mark.parametrize("field", [f for f in FIELDS if f not in SAME_ANYWAY and not LOADED_AT_ONCE.match(f)])
def test_one_that_is_as_at_the_start_changes_the_outcome(field, scene, tmp_path):
    """The bytes at the end, or what is told of the run where a field only counts."""
    images, state, fresh, (result, end, _) = scene
    changed = copy.deepcopy(state)
    (inside, key), (source, _) = parent(changed, field), parent(fresh, field)
    assert not equal({"": inside[key]}, {"": source[key]})
    inside[key] = copy.deepcopy(source[key])
    again, other, _ = run(tmp_path, images, resume=changed)
    if field in ("losses", "spent", "durations", "paused", "preemptions", "lost_seconds", "schedule"):
        assert again != result
    else:
        assert not equal(other["method"], end["method"])


def test_as_it_was_it_changes_nothing(scene, tmp_path):
    images, state, _, (result, end, _) = scene
    again, other, _ = run(tmp_path, images, resume=copy.deepcopy(state))
    assert again == result
    assert equal(other, end)


class TestUndo:
    @pytest.fixture
    def training(self):
        return training_of(flat(kind=Drawing, adversary="free"))

    def test_puts_back_every_tensor_delta_the_rate_and_the_generators(self, training):
        undo, before = Undo(training), copy.deepcopy(training.state())
        views = torch.rand(2, 4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        losses = training.adversary.losses(training.method, views)
        next(losses).backward()
        training.optimizer.param_groups[0]["lr"] = 0.1
        training.optimizer.step()
        training.method.after_update()
        losses.close()
        changed = training.state()
        assert not any(equal({"": changed[key]}, {"": before[key]}) for key in ("method", "optimizer", "schedule"))
        assert changed["delta"] is not None
        assert not equal(changed["generators"], before["generators"])
        undo.restore()
        assert equal(training.state(), before)
        assert all(p.grad is None for p in training.method.parameters())

    def test_is_current_only_with_the_whole_of_the_last_update(self, training):
        undo = Undo(training)
        assert undo.current
        training.clock.tick()
        assert not undo.current
        undo.save()
        assert not undo.current
        undo.follow()
        assert undo.current
