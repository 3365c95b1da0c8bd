"""Images in a file and in memory: the same batches, trainings and evaluations to the last bit, and the waiting."""

import threading
import time

import pytest
import torch
from data_fixtures import in_memory, load, noise, numbers, write_images
from evaluation_fixtures import CPU, QUICK, Shelf, build_classifier
from training_fixtures import equal, flat, told, trained, without_time

from bench.data.images import ImageSet, all_equal, checked_info, data_info, duplicates, permutation
from bench.data.pixels import Pixels
from bench.encoders.common.build import build_encoder
from bench.evaluation.evaluate import evaluate
from bench.evaluation.evaluated import Evaluated
from bench.protocols.common.classifier import extract
from bench.spec import UsageError
from bench.training.course import Course
from bench.training.feed import Feed
from methods import simclr

NEEDED = 3 * 16 * 16


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """(train, test) of 40 pictures of noise each, 3x16x16, in a file."""
    return load(noise(tmp_path_factory.mktemp("noise") / "set"), image_size=16)


class TestPixels:
    def test_indexing_is_that_of_a_tensor(self, images):
        train, whole = images[0], images[0].images[:]
        assert isinstance(train.images, Pixels)
        assert train.images.shape == whole.shape == (40, 3, 16, 16)
        mask = torch.arange(40) % 3 == 0
        for ids in (slice(5), slice(3, 30, 4), torch.tensor([7, 0, 7]), mask, slice(0)):
            assert torch.equal(train.images[ids], whole[ids])
            assert torch.equal(train.batch(ids, "cpu"), whole[ids])
            assert torch.equal(train.pictures(ids, "cpu"), whole[ids].float() / 255)
        for ids in (torch.tensor([7, 0, 9]), mask, slice(10, 20)):
            taken = train.take(ids)
            assert torch.equal(taken.images[:], whole[ids])
            assert taken.labels.tolist() == train.labels[ids].tolist()
        assert torch.equal(torch.cat(list(train.images.split(7))), whole)
        assert torch.equal(train.images.to("cpu"), whole)

    def test_taking_reads_nothing(self, images, monkeypatch):
        monkeypatch.setattr(Pixels, "__getitem__", lambda self, ids: pytest.fail("read"))
        taken = images[0].take(torch.arange(39, -1, -1)).first(7).central(8)
        assert (len(taken), taken.image_shape) == (7, (3, 8, 8))
        assert taken.to("cpu").images is taken.images
        assert taken.sha256 != images[0].first(7).sha256

    def test_the_central_square(self, images):
        assert torch.equal(images[0].central(8).images[:], images[0].images[:][:, :, 4:12, 4:12])
        assert torch.equal(in_memory(images[0]).central(8).images, images[0].images[:][:, :, 4:12, 4:12])

    def test_what_has_room_on_the_device_is_brought_there(self, images, monkeypatch):
        monkeypatch.setattr(ImageSet, "__post_init__", lambda self: None)  # it reads labels, of which meta has none
        memory = in_memory(images[0])
        assert memory.to("cpu", room=40 * NEEDED).images.device.type == "cpu"
        meta = torch.device("meta")
        assert images[0].to(meta, room=40 * NEEDED).images.device == meta
        assert images[0].to(meta, room=40 * NEEDED - 1).images is images[0].images
        assert memory.to(meta, room=40 * NEEDED - 1).images is memory.images
        assert images[0].to(meta, room=1).labels.device == meta

    def test_the_process_keeps_no_page_of_the_file(self, tmp_path):
        train, _ = load(write_images(tmp_path / "set", 60), image_size=256)
        before = resident_file()
        for part in train.images.split(10):
            assert part.shape == (10, 3, 256, 256)
        assert resident_file() - before < 2 * 2**20  # of 11.8 MB


def resident_file():
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("RssFile"))
    return int(line.split()[1]) * 1024


class TestFeed:
    @pytest.mark.parametrize("where", ["file", "memory"])
    def test_batches_in_the_order_of_seed_and_epoch(self, tmp_path, where):
        train, _ = load(write_images(tmp_path / "set", 11))
        train = train if where == "file" else in_memory(train)
        shown = numbers(train.images[:])
        with Feed(train, Course(11, 3, 1), 5, CPU) as feed:
            for epoch, batch in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]:
                ids, pixels = feed(epoch, batch)
                assert ids.tolist() == permutation(11, 5, epoch)[3 * batch : 3 * batch + 3].tolist()
                assert numbers(pixels) == [shown[i] for i in ids.tolist()]

    def test_from_the_middle_and_again(self, images):
        """A run goes on where it was stopped, and the replays of a batch may ask for it once more."""
        with Feed(images[0], Course(40, 6, 1), 0, CPU) as feed:
            for place in [(3, 4), (3, 5), (3, 5), (4, 0), (0, 0)]:
                ids, pixels = feed(*place)
                assert torch.equal(pixels, images[0].images[ids])

    def test_reads_ahead_and_counts_only_the_time_that_it_made_wait(self, images, monkeypatch):
        read, real, may_read = [], Pixels.__getitem__, threading.Event()
        may_read.set()

        def slow(self, ids):
            time.sleep(0.05)
            may_read.wait()
            read.append(threading.current_thread().name)
            return real(self, ids)

        monkeypatch.setattr(Pixels, "__getitem__", slow)
        with Feed(images[0], Course(40, 6, 1), 0, CPU) as feed:
            feed(0, 0)
            first = feed.waited
            assert first > 0.04
            while len(read) < 4:
                time.sleep(0.01)
            assert all(name.startswith("feed") for name in read)
            may_read.clear()
            began = time.perf_counter()
            feed(0, 1)  # which has been read
            assert feed.waited - first <= time.perf_counter() - began
            may_read.set()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("feed")]

    def test_an_error_of_a_thread_is_raised_where_the_batch_is_asked_for(self, images, monkeypatch):
        def fails(self, ids):
            raise OSError("the disk is gone")

        monkeypatch.setattr(Pixels, "__getitem__", fails)
        with Feed(images[0], Course(40, 6, 1), 0, CPU) as feed, pytest.raises(OSError, match="the disk is gone"):
            feed(0, 0)


class TestEqualToMemory:
    def test_a_training(self, images):
        ends = []
        for data in (images[0], in_memory(images[0])):
            result, state = trained(flat_rgb(), data, "25up", seed=3)
            ends.append((told(result), without_time(state)))
            assert (result.data_wait_seconds > 0) == isinstance(data.images, Pixels)
            assert result.data_wait_seconds <= result.data_seconds
        assert equal(ends[0], ends[1])

    def test_an_evaluation(self, images):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = build_encoder("resnet8", 3, 16).eval()
        spec = QUICK.model_copy(update={"protocols": ("linear", "multi_patch"), "crops": 2, "curve": (0.5,)})
        found = []
        for kind in (lambda data: data, in_memory):
            train, test = map(kind, images)
            shelf = Shelf()
            evaluate(Evaluated(encoder, train, test, spec, 0, CPU, shelf))
            found.append({cell: result.outcomes for cell, result in shelf.results.items()})
        assert found[0] == found[1]
        assert len(found[0]) > 4

    def test_features(self, images):
        classifier = build_classifier("linear", build_encoder("resnet8", 3, 16), (16, 16), 1, 0)
        features = [extract(classifier, data, CPU, 7) for data in (images[0].images, images[0].images[:])]
        assert torch.equal(*features)

    def test_the_count_of_duplicates(self, images):
        train = images[0]
        whole = train.take(torch.arange(30))
        assert duplicates(whole, train.take(torch.arange(25, 40))) == 5
        assert duplicates(in_memory(whole), in_memory(train.take(torch.arange(25, 40)))) == 5
        assert duplicates(train.take(torch.arange(20)), train.take(torch.arange(20, 40))) == 0
        assert data_info(whole, train.take(torch.arange(25, 40)).central(8)).duplicates == 5  # as what is evaluated

    def test_images_that_are_all_one(self, images):
        for data in (images[0], in_memory(images[0])):
            assert not all_equal(data.images)
            one = data.take(torch.zeros(9, dtype=torch.long))
            assert all_equal(one.images)
            with pytest.raises(UsageError, match="expected training images that differ, got the same 9 times"):
                checked_info(one, images[1])


def flat_rgb():
    """A method on one matrix, for images of 3x16x16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = simclr.Config(batch=4, hidden_width=8, embedding_width=8)
        encoder = flat().encoder
        encoder.layers[1] = torch.nn.Linear(NEEDED, 8)
        return simclr.Method(config).attach(encoder)
