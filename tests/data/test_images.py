"""ImageSet, the balanced order, subsets, the batch order, options that a dataset does not take."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.data.images import (
    BaseDataset,
    ImageSet,
    Split,
    balanced_order,
    checked_info,
    data_info,
    data_root,
    load_data,
    permutation,
    remarks,
)
from bench.record import DataInfo
from bench.spec import DataSpec, UsageError


def image_set(n: int = 12, classes: int = 3, shape: tuple[int, ...] = (1, 2, 2), label: str = "toy") -> ImageSet:
    """n images, each filled with its own index, labels 0, 1, 2, 0, ..."""
    images = torch.arange(n, dtype=torch.uint8).view(-1, 1, 1, 1).expand(n, *shape)
    return ImageSet(images, torch.arange(n) % classes, classes, label)


class Toy(BaseDataset):
    def load(self, root: Path, split: Split) -> ImageSet:
        return image_set(12 if split == "train" else 6)


class TestImageSet:
    def test_length_and_shape(self):
        assert len(image_set(7)) == 7
        assert image_set(7).image_shape == (1, 2, 2)

    def test_labels_out_of_range(self):
        images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
        with pytest.raises(UsageError, match=r"labels out of range: expected 0\.\.9, got 12"):
            ImageSet(images, torch.tensor([0, 12]), 10, "toy")
        with pytest.raises(UsageError, match=r"labels out of range: expected 0\.\.9, got -1"):
            ImageSet(images, torch.tensor([-1, 3]), 10, "toy")

    @pytest.mark.parametrize(
        "images",
        [torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(0, 1, 4, 4, dtype=torch.uint8)],
    )
    def test_images_of_another_kind(self, images):
        with pytest.raises(UsageError, match=r"expected images uint8 \(N, C, H, W\), got torch"):
            ImageSet(images, torch.zeros(len(images), dtype=torch.int64), 10, "toy")

    @pytest.mark.parametrize("labels", [torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int32)])
    def test_labels_of_another_kind(self, labels):
        with pytest.raises(UsageError, match=r"expected labels int64 \(2,\), one for each image, got torch"):
            ImageSet(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), labels, 10, "toy")

    def test_hash_sees_shape_pixels_labels_and_order(self):
        base = image_set()
        pixels = base.images.clone()
        pixels[3, 0, 1, 1] += 1
        others = [
            ImageSet(pixels, base.labels, 3, "toy"),
            ImageSet(base.images, base.labels.flip(0), 3, "toy"),
            ImageSet(base.images.reshape(12, 1, 1, 4), base.labels, 3, "toy"),
            base.take(torch.arange(11, -1, -1)),
        ]
        assert image_set().sha256 == base.sha256
        assert len({base.sha256, *(other.sha256 for other in others)}) == 5

    def test_hash_ignores_strides(self):
        images = torch.arange(24, dtype=torch.uint8).view(2, 2, 2, 3).permute(0, 3, 1, 2)
        labels = torch.zeros(2, dtype=torch.int64)
        assert ImageSet(images, labels, 1, "").sha256 == ImageSet(images.contiguous(), labels, 1, "").sha256

    def test_to_another_device(self):
        moved = image_set().to(torch.device("cpu"))
        assert moved.images.device.type == "cpu"
        assert moved.sha256 == image_set().sha256

    def test_first(self):
        assert image_set().first(5).images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
        assert len(image_set().first(99)) == len(image_set().first(None)) == 12


class TestBalancedOrder:
    @given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
    def test_every_prefix_is_balanced(self, labels):
        """A class that has images left is at most one image behind any other."""
        labels = torch.tensor(labels)
        order = balanced_order(labels)
        assert sorted(order.tolist()) == list(range(len(labels)))
        classes, totals = labels.unique(return_counts=True)
        for n in range(1, len(labels) + 1):
            counts = torch.stack([(labels[order[:n]] == c).sum() for c in classes])
            unfinished = counts[counts < totals]
            assert not len(unfinished) or counts.max() - unfinished.min() <= 1

    def test_is_a_function_of_the_labels(self):
        labels = torch.arange(100) % 10
        torch.manual_seed(1)
        assert torch.equal(balanced_order(labels), balanced_order(labels.clone()))

    def test_rounds_have_orders_of_their_own(self):
        labels = torch.arange(100) % 10
        rounds = labels[balanced_order(labels)].view(10, 10)
        assert (rounds.sort(dim=1).values == torch.arange(10)).all()
        assert len({tuple(r) for r in rounds.tolist()}) == 10

    def test_is_fixed_for_all_time(self):
        """A change here changes which images every subset of every stored result has seen."""
        assert balanced_order(torch.arange(10) % 3).tolist() == [1, 3, 2, 8, 7, 6, 5, 4, 0, 9]


class TestLoadData:
    def test_whole(self):
        train, test = load_data(Toy(), DataSpec(name="toy"))
        assert (len(train), len(test), train.label, train.subset) == (12, 6, "toy", False)
        assert train.images[:, 0, 0, 0].tolist() == balanced_order(image_set().labels).tolist()

    def test_subset_is_a_prefix_and_says_so(self):
        whole, _ = load_data(Toy(), DataSpec(name="toy"))
        train, test = load_data(Toy(), DataSpec(name="toy", train_images=6, test_images=3))
        assert train.label == test.label == "toy (subset 6/3)"
        assert torch.equal(train.images, whole.images[:6])
        assert train.labels.bincount().tolist() == [2, 2, 2]
        assert test.labels.bincount().tolist() == [1, 1, 1]

    def test_subset_of_one_split(self):
        train, test = load_data(Toy(), DataSpec(name="toy", test_images=3))
        assert train.label == test.label == "toy (subset 12/3)"

    def test_all_images_by_number_are_no_subset(self):
        assert load_data(Toy(), DataSpec(name="toy", train_images=12))[0].label == "toy"

    def test_more_than_there_are(self):
        with pytest.raises(UsageError, match="expected at most 12 train images, got 13; toy has no more"):
            load_data(Toy(), DataSpec(name="toy", train_images=13))
        with pytest.raises(UsageError, match="expected at most 6 test images, got 7"):
            load_data(Toy(), DataSpec(name="toy", test_images=7))

    @pytest.mark.parametrize("other", [{"classes": 4}, {"shape": (1, 2, 3)}, {"label": "toy-jpeg75"}])
    def test_splits_of_two_kinds(self, other):
        class Mixed(BaseDataset):
            def load(self, root: Path, split: Split) -> ImageSet:
                return image_set() if split == "train" else image_set(**other)

        with pytest.raises(UsageError, match=r"of one kind, got \(toy: 12 images 1x2x2, 3 classes\) and \(toy"):
            load_data(Mixed(), DataSpec(name="toy"))

    def test_held_out_images_are_training_images_and_the_test_images_are_never_read(self):
        class Sealed(BaseDataset):
            def load(self, root: Path, split: Split) -> ImageSet:
                assert split == "train"
                return image_set(n=30)

        train, test = load_data(Sealed(), DataSpec(name="toy", held_out=True))
        assert (len(train), len(test)) == (24, 6)
        assert train.label == test.label == "toy, held-out training images"
        assert train.labels.bincount().tolist() == [8, 8, 8]
        assert test.labels.bincount().tolist() == [2, 2, 2]
        both = torch.cat([train.images, test.images])[:, 0, 0, 0]
        assert sorted(both.tolist()) == sorted(image_set(n=30).images[:, 0, 0, 0].tolist())
        fewer, _ = load_data(Sealed(), DataSpec(name="toy", held_out=True, train_images=6))
        assert torch.equal(fewer.images, train.images[:6])

    def test_info(self):
        train, test = load_data(Toy(), DataSpec(name="toy", train_images=6))
        info = data_info(train, test)
        assert (info.label, info.train, info.test, info.classes) == ("toy (subset 6/6)", 6, 6, 3)
        assert (info.image_shape, info.subset) == ((1, 2, 2), True)
        assert (info.train_sha256, info.test_sha256) == (train.sha256, test.sha256)


class TestCheckedInfo:
    """Whether a number can rest on the images; the same in memory and in a file (tests/training/test_feed.py)."""

    def test_copies_are_counted_and_said(self):
        train, test = image_set(12), image_set(15).take(slice(10, 15))
        info = checked_info(train, test)
        assert info.duplicates == 2
        assert remarks(info) == ["toy: 2 of the 5 test images are training images too, to the last pixel"]
        assert remarks(checked_info(train, image_set(15).take(slice(12, 15)))) == []

    def test_splits_that_are_equal(self):
        part = replace(image_set(12).take(slice(3)), subset=True)
        for test in (image_set(12), part):
            with pytest.raises(UsageError, match=rf"not trained on, got {len(test)} that are all training images too"):
                checked_info(image_set(12), test)
        assert checked_info(image_set(12), image_set(12).take(slice(3))).duplicates == 3  # the audit will fail it

    def test_images_that_are_all_equal(self):
        one = image_set(15).take(torch.full((5,), 14))
        with pytest.raises(UsageError, match="expected test images that differ, got the same 5 times; look at the"):
            checked_info(image_set(12), one)
        assert checked_info(image_set(12), one.first(1)).test == 1

    @pytest.mark.parametrize(("classes", "count", "least"), [(3, 4, 5), (7, 6, 7)])
    def test_too_few_to_hold_some_out(self, classes, count, least):
        test = image_set(30, classes).take(slice(20, 30))
        with pytest.raises(
            UsageError, match=rf"at least {least} training images \(one of .*\), got {count}; add images"
        ):
            checked_info(image_set(30, classes).first(count), test)
        assert checked_info(image_set(30, classes).first(least), test).train == least

    def test_a_record_of_an_earlier_version_has_no_count(self):
        stored = data_info(image_set(), image_set()).model_dump(mode="json", exclude={"duplicates", "notes"})
        assert (DataInfo.model_validate(stored).duplicates, remarks(DataInfo.model_validate(stored))) == (None, [])


def test_a_class_without_images_in_one_split():
    class Gap(BaseDataset):
        def load(self, root: Path, split: Split) -> ImageSet:
            return image_set().take(slice(12)) if split == "train" else image_set().take(torch.tensor([0, 1, 3]))

    with pytest.raises(UsageError, match=r"of toy, got labels 0..2 .* and 0..1 .* in test: class 2 has no test image"):
        load_data(Gap(), DataSpec(name="toy"))


class TestDataRoot:
    def test_precedence(self, monkeypatch):
        monkeypatch.delenv("BENCH_DATA_ROOT", raising=False)
        assert data_root(Toy(), DataSpec(name="toy")).parts[-2:] == ("robust-ssl-bench", "data")
        monkeypatch.setenv("BENCH_DATA_ROOT", "from-environment")
        assert data_root(Toy(), DataSpec(name="toy")) == Path("from-environment")
        assert data_root(Toy(), DataSpec(name="toy", root="~/given")) == Path.home() / "given"

    def test_a_folder_where_one_is_needed(self, monkeypatch):
        monkeypatch.setattr(Toy, "needs_path", True)
        assert data_root(Toy(), DataSpec(name="toy", path="here", root="there")) == Path("here")
        with pytest.raises(UsageError, match="expected a folder after the name, got 'toy'; write toy:DIR"):
            data_root(Toy(), DataSpec(name="toy"))

    def test_a_folder_where_none_is_taken(self):
        with pytest.raises(UsageError, match="got toy:here; this dataset takes no folder"):
            data_root(Toy(), DataSpec(name="toy", path="here"))


class TestOptions:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"image_size": 64}, "expected 'toy' without --image-size, got 64; its images have a size"),
            ({"classes": "list.txt"}, "expected 'toy' without --classes, got list.txt; it has all its classes"),
        ],
    )
    def test_that_a_dataset_does_not_take(self, given, message):
        with pytest.raises(UsageError, match=message):
            load_data(Toy(), DataSpec(name="toy", **given))


class TestPermutation:
    def test_is_a_function_of_seed_and_epoch(self):
        orders = {(s, e): tuple(permutation(50, s, e).tolist()) for s in range(3) for e in range(3)}
        assert len(set(orders.values())) == 9
        assert all(sorted(order) == list(range(50)) for order in orders.values())
        assert permutation(50, 1, 2).tolist() == list(orders[1, 2])
        assert permutation(50, 1, 2).dtype == torch.int64


@pytest.mark.ci
def test_heavy_libraries_are_loaded_when_needed():
    code = "import bench.data.images, sys; print({'torchvision', 'sklearn', 'PIL', 'pyarrow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
