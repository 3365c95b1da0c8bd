"""Random streams: golden values, uniform, independent, functions of their keys alone; and the stamp of a machine."""

import platform
import random
import subprocess

import numpy as np
import pytest
import torch
from scipy import stats

from bench.random import PACKAGES, Draws, checkout, digest, environment, stream
from bench.record import Environment

MASK = 2**64 - 1


def splitmix64(state, index):
    """Number ``index`` of the sequence, after the reference C code (Vigna, splitmix64.c), in unbounded integers."""
    z = (state + (index + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def uniform(seed=0, epoch=0, images=range(64), views=4, n=16):
    return Draws(seed, epoch, torch.tensor(list(images)), views).uniform(n)


class TestStream:
    def test_golden_values(self):
        assert digest(0, "init") == 6291500876198751163
        values = torch.randint(0, 1000, (4,), generator=stream(0, "init")).tolist()
        assert values == [65, 948, 552, 86]

    def test_it_is_a_function_of_its_keys_alone(self):
        first = torch.rand(5, generator=stream(3, "attack", 1, 2))
        torch.rand(7)
        assert torch.equal(first, torch.rand(5, generator=stream(3, "attack", 1, 2)))

    def test_every_key_counts(self):
        keys = [
            (0,),
            (1,),
            (0, "a"),
            (0, "b"),
            (0, 1),
            (0, "1"),
            (0, 1, 2),
            (0, 2, 1),
            (0, 12),
            (0, "a", "b"),
            (0, "ab"),
        ]
        assert len({stream(*key).initial_seed() for key in keys}) == len(keys)

    def test_global_generators_are_untouched(self):
        before = torch.get_rng_state(), random.getstate()
        stream(0, "init")
        uniform()
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == random.getstate()

    def test_a_key_of_another_type_is_refused(self):
        with pytest.raises(TypeError, match="not JSON serializable"):
            stream(0, np.int64(1))


class TestDraws:
    def test_numbers_equal_the_sequence_in_unbounded_integers(self):
        u = Draws(7, 3, torch.tensor([11, 2**40]), 2)
        u = torch.cat([u.uniform(2), u.uniform(3)], dim=2)
        for v in range(2):
            for b, image in enumerate([11, 2**40]):
                row = splitmix64(splitmix64(digest(7, "draws", 3), v), image)
                assert u[v, b].tolist() == [(splitmix64(row, place) >> 40) / 2**24 for place in range(5)]

    def test_golden_values(self):
        assert (uniform(0, 0, [0, 1], 1, 2) * 2**24).long().tolist() == [[[6212004, 6278732], [2120465, 6593797]]]

    def test_shape_type_and_range(self):
        u = uniform()
        assert u.shape == (4, 64, 16)
        assert u.dtype == torch.float32
        assert 0 <= u.min() <= u.max() < 1

    def test_numbers_are_uniform(self):
        u = uniform(images=range(500), n=50).flatten().double()
        assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3
        counts = torch.bincount((u * 256).long(), minlength=256)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3

    @pytest.mark.parametrize("seed", range(3))
    def test_each_first_number_is_uniform_over_images_epochs_and_seeds(self, seed):
        """The numbers at one place, over consecutive keys: where a weak hash would show a lattice."""
        over_images = uniform(seed, images=range(5000), views=1, n=1).flatten()
        over_epochs = torch.cat([uniform(seed, epoch, [5], 1, 1).flatten() for epoch in range(2000)])
        over_seeds = torch.cat([uniform(1000 * seed + s, 0, [5], 1, 1).flatten() for s in range(1000)])
        for u in (over_images, over_epochs, over_seeds):
            assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3

    @pytest.mark.parametrize(
        "other",
        [
            lambda: uniform(seed=1, images=range(1000)),
            lambda: uniform(epoch=1, images=range(1000)),
            lambda: uniform(images=range(1000)).roll(1, dims=0),  # another view
            lambda: uniform(images=range(1, 1001)),  # another image
            lambda: uniform(images=range(1000), n=32)[..., 16:],  # the next call
            lambda: uniform(images=range(1000)).roll(1, dims=2),  # the next number
        ],
        ids=["seed", "epoch", "view", "image", "call", "place"],
    )
    def test_numbers_of_different_keys_are_independent(self, other):
        a, b = uniform(images=range(1000)).flatten(), other().flatten()
        correlation = torch.corrcoef(torch.stack([a, b]))[0, 1].item()
        assert abs(correlation) < 4 / len(a) ** 0.5  # four standard errors
        table = torch.bincount((a * 8).long() * 8 + (b * 8).long(), minlength=64).view(8, 8)
        assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3
        assert (a == b).float().mean() < 1e-4

    def test_rows_follow_the_image_ids(self):
        ids = torch.randperm(64, generator=torch.Generator().manual_seed(0))
        assert torch.equal(uniform(images=ids.tolist()), uniform()[:, ids])

    @pytest.mark.parametrize("batch", [1, 7, 64])
    def test_batch_size_changes_nothing(self, batch):
        parts = [uniform(images=range(s, min(s + batch, 64))) for s in range(0, 64, batch)]
        assert torch.equal(torch.cat(parts, dim=1), uniform())

    def test_number_of_views_changes_no_view(self):
        assert torch.equal(uniform(views=2), uniform(views=4)[:2])

    def test_calls_continue_the_row(self):
        draws = Draws(0, 0, torch.arange(64), 4)
        first, second = draws.uniform(5), draws.uniform(11)
        assert torch.equal(torch.cat([first, second], dim=2), uniform())

    def test_same_keys_same_numbers(self):
        assert torch.equal(uniform(), uniform())


class TestEnvironment:
    def test_it_names_what_made_the_number(self):
        found = environment("cpu", "float32")
        assert isinstance(found, Environment)
        assert found.torch == torch.__version__
        assert set(found.versions) == set(PACKAGES)
        assert found.cpu == found.device_name != ""
        assert found.cores >= 1
        assert found.threads == torch.get_num_threads()
        assert (found.device, found.precision) == ("cpu", "float32")
        assert found.node == platform.node() != ""
        assert Environment.model_validate_json(found.model_dump_json()) == found

    def test_a_missing_package_is_left_out(self, monkeypatch):
        monkeypatch.setattr("bench.random.PACKAGES", ("torch", "no-such-package"))
        assert set(environment("cpu", "float32").versions) == {"torch"}

    def test_without_git_there_is_no_commit(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        found = environment("cpu", "float32")
        assert (found.commit, found.dirty) == (None, None)


class TestCheckout:
    @pytest.fixture
    def package(self, tmp_path):
        """A package folder in a fresh checkout, committed."""
        package = tmp_path / "bench"
        package.mkdir()
        (tmp_path / "methods").mkdir()
        (package / "__init__.py").touch()
        self.git(tmp_path, "init")
        self.git(tmp_path, "add", ".")
        self.git(tmp_path, "-c", "user.name=n", "-c", "user.email=e", "commit", "-m", "m")
        return package

    @staticmethod
    def git(folder, *arguments):
        subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True)

    def test_a_commit_and_whether_code_changed(self, package):
        commit, dirty = checkout(package)
        assert len(commit) == 40
        assert dirty is False
        (package.parent / "results").touch()  # no code
        assert checkout(package) == (commit, False)
        (package.parent / "methods" / "new.py").touch()
        assert checkout(package) == (commit, True)

    def test_an_untracked_package_has_no_commit(self, package):
        other = package.parent / "installed"
        other.mkdir()
        (other / "__init__.py").touch()
        assert checkout(other) == (None, None)

    def test_outside_a_checkout_there_is_no_commit(self, tmp_path):
        assert checkout(tmp_path) == (None, None)
