"""The largest shift of the features, against closed forms of linear encoders and loops over pairs and corners."""

import itertools
import math

import pytest
import torch
from evaluation_fixtures import QUICK, TEST, evaluated, generator, random_images, tiny_encoder
from store_fixtures import RECORD, SPEC, probe
from torch import nn

from bench.evaluation.embedding import encoder_shift, furthest, summary
from bench.identity.again import check_run
from bench.identity.signed import Signed
from bench.identity.source import sources
from bench.spec import UsageError
from bench.storage.repair import repair
from bench.storage.store import RunFolder


def linear(weights):
    """(F, C * H * W) -> an encoder without an offset, frozen."""
    layer = nn.Linear(weights.shape[1], weights.shape[0], bias=False)
    layer.weight.data = weights
    return nn.Sequential(nn.Flatten(), layer).eval().requires_grad_(False)


def grey(count, *shape):
    """Images between .3 and .7: an eps of .2 stays away from the box."""
    return 0.3 + 0.4 * torch.rand(count, *shape, generator=generator(5))


def lengths(encoder, images, eps):
    before, after = furthest(encoder, images, eps, generator(1))
    return (after - before).norm(dim=1)


class TestFurthest:
    @pytest.mark.parametrize("eps", [0.01, 0.2])
    def test_one_linear_feature_moves_by_eps_times_the_l1_norm_of_its_weights(self, eps):
        weights = torch.randn(1, 3 * 8 * 8, generator=generator(2))
        found = lengths(linear(weights), grey(16, 3, 8, 8), eps)
        torch.testing.assert_close(found, (eps * weights.abs().sum()).expand(16), rtol=1e-5, atol=0)

    def test_the_box_takes_what_it_cuts_off(self):
        """Pixels at 0 go up and pixels at 1 go down: the features move by the larger of the two sums that are left."""
        weights = torch.randn(1, 12, generator=generator(3))
        images = torch.randint(0, 2, (32, 3, 2, 2), generator=generator(4)).float()
        way = 0.1 * (1 - 2 * images.flatten(1)) * weights
        most = torch.stack([way.clamp(min=0).sum(dim=1), -way.clamp(max=0).sum(dim=1)]).amax(dim=0)
        found = lengths(linear(weights), images, 0.1)
        assert (found <= most + 1e-6).all()
        assert ((found - most).abs() < 1e-6).float().mean() > 0.5  # the start decides on which of the two it climbs

    def test_several_linear_features_come_near_the_best_corner_and_never_beyond_it(self):
        weights = torch.randn(4, 8, generator=generator(6))
        corners = torch.tensor(list(itertools.product((-0.1, 0.1), repeat=8)))
        most = (corners @ weights.T).norm(dim=1).max()  # convex, so the maximum is at one of the 256 corners
        found = lengths(linear(weights), grey(64, 2, 2, 2), 0.1)
        assert (found <= most + 1e-6).all()
        assert found.mean() > 0.9 * most
        assert torch.isclose(found.max(), most, rtol=1e-5)

    def test_eps_0_moves_nothing(self):
        assert lengths(tiny_encoder(), TEST.pictures(slice(8), "cpu"), 0.0).tolist() == [0.0] * 8

    def test_a_larger_ball_moves_at_least_as_far(self):
        images = TEST.pictures(slice(8), "cpu")
        small, large = (lengths(tiny_encoder(), images, eps) for eps in (0.01, 0.05))
        assert (small > 0).all()
        assert (small < large).all()

    def test_features_that_are_not_finite_are_not_called_small(self):
        class Log(nn.Module):
            def forward(self, images):
                return (images.flatten(1) - 0.5).log()

        assert summary(*furthest(Log(), grey(4, 1, 2, 2), 0.1, generator()))["note"] == "features are NaN or infinite"


class TestSummary:
    def test_it_is_the_loop_over_pairs_and_images(self):
        before, after = (torch.randn(7, 5, generator=generator(seed)) for seed in (0, 1))
        pairs = [math.dist(a, b) for a, b in itertools.combinations(before.tolist(), 2)]
        spread = sum(pairs) / len(pairs)
        shifts = sorted(math.dist(a, b) / spread for a, b in zip(before.tolist(), after.tolist(), strict=True))
        centre = [sum(column) / 7 for column in zip(*before.tolist(), strict=True)]
        cosines = []
        for pair in zip(before.tolist(), after.tolist(), strict=True):
            a, b = ([x - c for x, c in zip(features, centre, strict=True)] for features in pair)
            cosines.append(sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b)))
        assert summary(before, after) == pytest.approx(
            {"spread": spread, "mean": sum(shifts) / 7, "median": shifts[3], "cosine_mean": sum(cosines) / 7,
             "cosine_median": sorted(cosines)[3]}
        )  # fmt: skip

    def test_scale_and_offset_of_the_features_change_nothing(self):
        before, after = (torch.randn(9, 5, generator=generator(seed)) for seed in (0, 1))
        moved = summary(1000 * before + 5, 1000 * after + 5)
        plain = summary(before, after)
        assert {k: v for k, v in moved.items() if k != "spread"} == pytest.approx(
            {k: v for k, v in plain.items() if k != "spread"}, rel=1e-4
        )

    def test_without_two_different_images_there_is_no_unit(self):
        note = {"note": "the features of all images are equal"}
        assert summary(torch.ones(3, 2), torch.zeros(3, 2)) == note
        assert summary(torch.ones(1, 2), torch.zeros(1, 2)) == note


# ---------------------------------------------------------------- in the folder of a run


@pytest.fixture
def folder(tmp_path):
    run = Signed(tmp_path, SPEC, sources([SPEC])[SPEC.row])
    run.save_record(RECORD)
    return run


def measured(folder, spec=QUICK, **others):
    assert encoder_shift(evaluated(folder, spec, **others)) == ""
    return folder.shift()


def test_it_is_stored_signed_and_made_once(folder, monkeypatch):
    found = measured(folder)
    assert (found.eps, found.images, found.config["steps"]) == (0.02, 20, 20)  # the synthetic test images are 20
    assert 0 < found.median < found.mean * 2 < 2
    assert found.code
    assert folder.record().shift == found
    assert "shift" not in (folder.path / "run.json").read_text()
    monkeypatch.setattr("bench.evaluation.embedding.furthest", None)
    assert measured(folder) == found


def test_a_seed_repeats_it_and_quick_looks_at_64_images(folder, tmp_path):
    many = random_images(80)
    again = RunFolder(tmp_path / "again", SPEC)
    first, second = (measured(place, test=many) for place in (folder, again))
    assert first.images == 64
    assert first.model_dump(exclude={"seconds", "code"}) == second.model_dump(exclude={"seconds", "code"})
    standard = RunFolder(tmp_path / "standard", SPEC)
    assert measured(standard, QUICK.model_copy(update={"level": "standard"}), test=many).images == 80


def test_a_folder_without_it_loads(folder):
    assert folder.shift() is folder.record().shift is None
    old = RECORD.model_dump()
    assert "shift" not in old
    assert type(RECORD).model_validate(old) == RECORD


def test_an_encoder_without_a_gradient_has_no_number_and_says_so(folder):
    class Cut(nn.Module):
        def forward(self, images):
            return images.detach().flatten(1)

    reason = encoder_shift(evaluated(folder, encoder=Cut()))
    assert reason.startswith("no shift of the features: RuntimeError")
    assert folder.shift() is None


def test_where_the_time_is_spent_it_is_missing_and_with_more_time_it_is_made(folder):
    folder.save_probe(probe(), {"weight": torch.ones(1)})  # took half a second
    late, later = (QUICK.model_copy(update={"budget_seconds": seconds}) for seconds in (0.5, 0.6))
    assert encoder_shift(evaluated(folder, late)) == "no time was left for the shift of the features"
    assert measured(folder, later) is not None


def test_damage_is_put_aside_and_made_again(folder):
    before = measured(folder)
    (folder.path / "shift.json").write_text("{}")
    (damage,) = repair(folder)
    assert damage.path == folder.path / "shift.json"
    assert measured(folder).model_dump(exclude={"seconds"}) == before.model_dump(exclude={"seconds"})


def test_other_code_has_made_it_is_told(folder):
    folder.save_shift(measured(folder))
    check_run(folder, folder.found)
    now = folder.found | {"feature shift": {"bench/evaluation/embedding.py": "changed"}}
    with pytest.raises(UsageError, match="feature shift"):
        check_run(folder, now)
