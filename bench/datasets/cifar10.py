"""CIFAR-10: 50,000 train and 10,000 test photos of 10 classes, 3x32x32, downloaded on first use (Krizhevsky, 2009)."""

import hashlib
import shutil
import tarfile
import warnings
import zlib
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

import torch

from bench.data.cache import writable
from bench.data.images import BaseDataset, ImageSet, Split
from bench.spec import UsageError

MOST_BYTES, MOST_MEMBERS = 4 * 2**30, 200_000  # of an archive
TIMEOUT_SECONDS = 30.0  # without a single byte from the host


class Dataset(BaseDataset):
    torchvision_class = "CIFAR10"

    def load(self, root: Path, split: Split) -> ImageSet:
        from torchvision import datasets

        cifar = getattr(datasets, self.torchvision_class)
        folder = root / cifar.base_folder
        if not folder.exists():
            unpack(cifar, root)
        # a batch is a pickle and may run code: every use hashes it first
        for name, md5 in (*cifar.train_list, *cifar.test_list, (cifar.meta["filename"], cifar.meta["md5"])):
            check_md5(folder / name, md5, str(folder / name), f"delete {folder} to have it made again")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"dtype\(\): align")  # numpy 2.4.0 to 2.4.4, at old pickles
            loaded = cifar(root, train=split == "train")
        images = torch.from_numpy(loaded.data).permute(0, 3, 1, 2).contiguous()
        label = self.torchvision_class.lower()
        return ImageSet(images, torch.tensor(loaded.targets), classes=len(loaded.classes), label=label)


def unpack(cifar: Any, root: Path) -> None:
    """Put the batches of `cifar`, a class of torchvision's, into `root`, from the archive there or from its host.

    The work is done in a scratch folder and ends with one rename: what is found later is whole. Raises UsageError.
    """
    archive = root / cifar.filename
    remedy = f"download {cifar.url} by hand and put it at {archive}"
    writable(root)
    try:
        with TemporaryDirectory(prefix=".unpack-", dir=root) as scratch:
            if archive.exists():
                check_md5(archive, cifar.tgz_md5, str(archive), f"delete it, or {remedy}")
            else:
                archive = download(cifar.url, Path(scratch) / cifar.filename)
                check_md5(archive, cifar.tgz_md5, f"the download from {cifar.url}", f"try again, or {remedy}")
            extract(archive, Path(scratch))
            with suppress(OSError):  # another process was faster; the files are checked in any case
                (Path(scratch) / cifar.base_folder).rename(root / cifar.base_folder)
    except (OSError, HTTPException) as error:
        raise UsageError(f"cannot fetch {cifar.url} into {root}: {error}; {remedy}") from error


def extract(archive: Path, folder: Path) -> None:
    """Files and folders of a tar into ``folder``, which is a scratch one. Raises UsageError for anything else in it.

    Links and devices are no part of a dataset, and Python's own filter for them has had holes; it does the rest.
    """
    size = 0
    try:
        with tarfile.open(archive) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none
            for number, member in enumerate(tar, start=1):
                path, size = PurePosixPath(member.name), size + member.size
                inside = not path.is_absolute() and ".." not in path.parts
                if not (inside and (member.isreg() or member.isdir())):
                    raise UsageError(f"expected files and folders inside {archive}, got {member.name[:80]!r}")
                if number > MOST_MEMBERS or size > MOST_BYTES:
                    raise UsageError(f"expected at most {MOST_MEMBERS} members and {MOST_BYTES} bytes in {archive}")
                tar.extract(member, folder)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"cannot unpack {archive}: {type(error).__name__}: {reason}") from error


def download(url: str, path: Path) -> Path:
    """`path`, filled from `url`. Raises OSError, also after TIMEOUT_SECONDS without data, or HTTPException."""
    with urlopen(url, timeout=TIMEOUT_SECONDS) as response, path.open("wb") as file:
        shutil.copyfileobj(response, file)
    return path


def check_md5(path: Path, expected: str, what: str, remedy: str) -> None:
    """Raises UsageError unless the file at `path` has the md5 `expected`."""
    if not path.is_file():
        raise UsageError(f"expected {what}, found no such file; {remedy}")
    with path.open("rb") as file:
        got = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if got != expected:
        raise UsageError(f"{what} is damaged: expected md5 {expected}, got {got}; {remedy}")
