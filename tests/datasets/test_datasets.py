"""Every dataset in the folder: counts, shapes, hashes, the download from a host of our own, and what goes wrong."""

import hashlib
import io
import pickle
import socket
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from bench.data.images import balanced_order, data_info, load_data
from bench.datasets import cifar10, cifar100, digits, folder, parquet, synthetic
from bench.plugins import TRAITS
from bench.spec import DataSpec, UsageError


class TestDigits:
    def test_counts_and_shapes(self, tmp_path):
        train, test = load_data(digits.Dataset(), DataSpec(name="digits", root=str(tmp_path)))
        assert (len(train), len(test), train.image_shape, train.classes) == (1500, 297, (1, 16, 16), 10)
        assert set(test.labels.bincount().tolist()) == {29, 30}
        assert train.images.max() == 255
        assert train.images.min() == 0
        assert not list(tmp_path.iterdir())

    def test_hashes(self):
        """A change here makes every stored result on digits incomparable."""
        info = data_info(*load_data(digits.Dataset(), DataSpec(name="digits")))
        assert info.train_sha256 == "3cac5f4fde2b185022ddce7a71e9da7bed114d87a29c7a3f8978bc9c1fc82a6a"
        assert info.test_sha256 == "9bfcfde053ac2590d10e11d6cb58987688a3d57564277ca272b6b4921f1fd418"

    def test_enlarged_from_the_original(self):
        """Against bilinear interpolation row by row, then column by column, with numpy's."""
        from sklearn.datasets import load_digits

        original = load_digits()
        places = (np.arange(16) + 0.5) / 2 - 0.5
        index = balanced_order(torch.from_numpy(original.target))[:20]
        for image, pixels in zip(original.images[index], digits.Dataset().load(None, "test").images, strict=False):
            rows = np.array([np.interp(places, np.arange(8), row) for row in image])
            enlarged = np.array([np.interp(places, np.arange(8), column) for column in rows.T]).T
            assert np.abs(enlarged * 255 / 16 - pixels[0].numpy()).max() <= 0.5

    def test_splits_together_are_all_digits(self):
        train, test = (digits.Dataset().load(None, split) for split in ("train", "test"))
        counts = torch.cat([train.labels, test.labels]).bincount().tolist()
        assert counts == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


class TestSynthetic:
    def test_counts_and_shapes(self):
        train, test = load_data(synthetic.Dataset(), DataSpec(name="synthetic"))
        assert (len(train), len(test), train.image_shape, train.classes) == (256, 128, (3, 16, 16), 10)
        assert train.sha256 == load_data(synthetic.Dataset(), DataSpec(name="synthetic"))[0].sha256
        assert train.sha256 != test.sha256

    def test_is_learnable_but_not_at_one_pixel(self):
        train, test = load_data(synthetic.Dataset(), DataSpec(name="synthetic"))
        x, z = train.images.flatten(1).float(), test.images.flatten(1).float()
        means = torch.stack([x[train.labels == c].mean(dim=0) for c in range(10)])
        assert (torch.cdist(z, means).argmin(dim=1) == test.labels).float().mean() > 0.95
        assert (torch.cdist(z[:, :1], means[:, :1]).argmin(dim=1) == test.labels).float().mean() < 0.5


@pytest.mark.parametrize("module", [cifar10, cifar100, digits, folder, parquet, synthetic])
def test_every_dataset_says_what_it_is_and_how_it_is_measured(module):
    assert len(module.__doc__.splitlines()) == 1
    assert ": " in module.__doc__
    dataset = module.Dataset()
    assert dataset.main_eps in dataset.eps
    assert dataset.level in ("quick", "standard", "full")
    assert dataset.needs_path == (module in (folder, parquet))
    assert all(set(entry.split()) <= set(TRAITS) for entry in dataset.OVERRIDES)


# ---------------------------------------------------------------- CIFAR


def old_pickle(content) -> bytes:
    """`content` pickled as Python 2 and numpy 1 did: what the real batches look like; numpy 2.4.0 to 2.4.4 warn."""
    data = pickle.dumps(content, protocol=2)
    return data.replace(b"numpy._core", b"numpy.core").replace(b"\x89\x88\x87", b"K\x00K\x01\x87")


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """torchvision's CIFAR10 pointed at a host of ours with a small archive of the same layout; yields the archive."""
    rng = np.random.default_rng(0)
    kind = torchvision.datasets.CIFAR10
    names = [name for name, _ in kind.train_list + kind.test_list]
    files = {
        name: old_pickle({"data": rng.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [i % 3, 0, 1, 2]})
        for i, name in enumerate(names)
    }
    files[kind.meta["filename"]] = old_pickle({"label_names": ["airplane", "automobile", "bird"]})
    host = tmp_path / "host"
    host.mkdir()
    archive = host / kind.filename
    with tarfile.open(archive, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{kind.base_folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(kind, "train_list", [[name, md5(files[name])] for name in names[:-1]])
    monkeypatch.setattr(kind, "test_list", [[name, md5(files[name])] for name in names[-1:]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(files[kind.meta["filename"]])})
    monkeypatch.setattr(kind, "tgz_md5", md5(archive.read_bytes()))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=host)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(kind, "url", f"http://127.0.0.1:{server.server_port}/{kind.filename}")
        yield archive
        server.shutdown()
        thread.join()


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; where it holds a file `cut`, transfers break off in the middle."""

    def log_message(self, *args):
        pass

    def copyfile(self, source, outputfile):
        data = source.read()
        outputfile.write(data[: len(data) // 2] if (Path(self.directory) / "cut").exists() else data)


def load(root, split="train"):
    return cifar10.Dataset().load(root, split)


class TestCifar:
    def test_md5s_of_the_originals(self):
        assert torchvision.datasets.CIFAR10.tgz_md5 == "c58f30108f718f92721af3b95e74349a"
        assert torchvision.datasets.CIFAR100.tgz_md5 == "eb9058c3a382ffc7106e4002c42a8d85"

    def test_download(self, cifar, tmp_path, capfd):
        root = tmp_path / "new" / "root"
        train, test = load(root), load(root, "test")
        assert (len(train), len(test), train.image_shape, train.classes) == (20, 4, (3, 32, 32), 3)
        assert train.label == test.label == "cifar10"
        batch = pickle.loads((root / "cifar-10-batches-py" / "test_batch").read_bytes(), encoding="latin1")
        assert torch.equal(test.images, torch.from_numpy(batch["data"]).view(4, 3, 32, 32))
        assert test.labels.tolist() == batch["labels"]
        assert [f.name for f in root.iterdir()] == ["cifar-10-batches-py"]
        assert capfd.readouterr() == ("", "")

    def test_is_downloaded_once(self, cifar, tmp_path):
        first = load(tmp_path)
        cifar.unlink()
        assert load(tmp_path).sha256 == first.sha256

    def test_an_archive_put_there_by_hand(self, cifar, tmp_path, monkeypatch):
        cifar.rename(tmp_path / cifar.name)
        assert len(load(tmp_path)) == 20
        assert (tmp_path / cifar.name).exists()

    def test_a_damaged_archive_put_there_by_hand(self, cifar, tmp_path):
        damaged = tmp_path / cifar.name
        damaged.write_bytes(cifar.read_bytes()[:-100])
        expected, got = md5(cifar.read_bytes()), md5(damaged.read_bytes())
        with pytest.raises(
            UsageError, match=f"{damaged} is damaged: expected md5 {expected}, got {got}; delete it, or"
        ):
            load(tmp_path)
        assert damaged.exists()

    def test_a_transfer_that_breaks_off(self, cifar, tmp_path):
        (cifar.parent / "cut").touch()
        root = tmp_path / "root"
        with pytest.raises(
            UsageError, match=r"the download from http://\S+ is damaged: expected md5 \w+, got \w+; try"
        ):
            load(root)
        assert not list(root.iterdir())
        (cifar.parent / "cut").unlink()
        assert len(load(root)) == 20

    def test_another_archive_at_the_host(self, cifar, tmp_path, monkeypatch):
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", "0" * 32)
        with pytest.raises(UsageError, match="expected md5 00000000000000000000000000000000, got"):
            load(tmp_path / "root")
        assert not list((tmp_path / "root").iterdir())

    def test_no_such_file_at_the_host(self, cifar, tmp_path):
        cifar.unlink()
        with pytest.raises(
            UsageError, match=r"HTTP Error 404.*; download http\S+ by hand and put it at \S+/root/cifar"
        ):
            load(tmp_path / "root")

    def test_no_host(self, cifar, tmp_path, monkeypatch):
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"http://127.0.0.1:{port}/archive")
        with pytest.raises(
            UsageError, match=r"cannot fetch http\S+ into \S+root: .*refused.*; download http\S+ by hand"
        ):
            load(tmp_path / "root")

    def test_a_host_that_never_answers(self, cifar, tmp_path, monkeypatch):
        monkeypatch.setattr(cifar10, "TIMEOUT_SECONDS", 0.1)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/a")
            with pytest.raises(UsageError, match=r"timed out; download http\S+ by hand and put it at"):
                load(tmp_path / "root")

    def test_a_root_that_cannot_be_made(self, cifar, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(UsageError, match=r"cannot write to \S+/file/root: Not a directory; give .* --data-root or"):
            load(tmp_path / "file" / "root")

    @pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
    def test_a_changed_batch_is_never_unpickled(self, cifar, tmp_path, name):
        load(tmp_path)
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(
            UsageError, match=rf"{name} is damaged: expected md5 \w+, got \w+; delete \S+ to have it made"
        ):
            load(tmp_path)

    def test_a_missing_batch(self, cifar, tmp_path):
        load(tmp_path)
        (tmp_path / "cifar-10-batches-py" / "data_batch_2").unlink()
        with pytest.raises(UsageError, match=r"expected \S+data_batch_2, found no such file; delete"):
            load(tmp_path)


def test_cifar100_has_the_fine_labels(tmp_path, monkeypatch):
    kind = torchvision.datasets.CIFAR100
    batch = {"data": np.zeros((3, 3072), np.uint8), "fine_labels": [2, 0, 1], "coarse_labels": [0, 0, 0]}
    files = {"train": batch, "test": batch, "meta": {"fine_label_names": ["apple", "bear", "cup"]}}
    (tmp_path / kind.base_folder).mkdir()
    for name, content in files.items():
        (tmp_path / kind.base_folder / name).write_bytes(old_pickle(content))
    monkeypatch.setattr(kind, "train_list", [["train", md5(old_pickle(batch))]])
    monkeypatch.setattr(kind, "test_list", [["test", md5(old_pickle(batch))]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(old_pickle(files["meta"]))})
    train = cifar100.Dataset().load(tmp_path, "train")
    assert (train.label, train.classes, train.labels.tolist()) == ("cifar100", 3, [2, 0, 1])


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a changed batch was unpickled",)
