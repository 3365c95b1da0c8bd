"""The archive of CIFAR stays in its folder and under its limits, even one whose sum somebody has made fit."""

import gzip
import hashlib
import io
import tarfile

import pytest

from bench.datasets import cifar10
from bench.spec import UsageError


def tar(*members, mode="w:gz"):
    """A tar of (name, data or None for a folder, changes of the header)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=tarfile.GNU_FORMAT) as archive:
        for name, data, changes in members:
            member = tarfile.TarInfo(name)
            member.size, member.type = len(data or b""), tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            for key, value in changes.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(data or b""))
    return file.getvalue()


def special(kind, target=""):
    return tar(("c/a", b"one", {}), ("c/special", b"", {"type": kind, "linkname": target}))


def plain(name):
    return tar(("c/a", b"one", {}), (name, b"out", {}))


INSIDE, LIMIT = "expected files and folders inside", "expected at most 50 members and 100000 bytes in"
HOSTILE = {
    "a way up": (plain("../out.txt"), INSIDE),
    "a way up, later": (plain("c/../../out.txt"), INSIDE),
    "an absolute name": (plain("/tmp/bench-canary.txt"), INSIDE),
    "a symlink out": (special(tarfile.SYMTYPE, "/etc"), INSIDE),
    "a symlink and a file through it": (
        tar(("c/l", b"", {"type": tarfile.SYMTYPE, "linkname": ".."}), ("c/l/out.txt", b"out", {})),
        INSIDE,
    ),
    "a hard link out": (special(tarfile.LNKTYPE, "../../out.txt"), INSIDE),
    "a hard link inside": (special(tarfile.LNKTYPE, "c/a"), INSIDE),
    "a character device": (special(tarfile.CHRTYPE), INSIDE),
    "a block device": (special(tarfile.BLKTYPE), INSIDE),
    "a pipe": (special(tarfile.FIFOTYPE), INSIDE),
    "too many members": (tar(*((f"c/{i}", b"", {}) for i in range(51))), LIMIT),
    "too many bytes": (tar(("c/bomb", bytes(2**22), {})), LIMIT),
    "cut short": (gzip.compress(gzip.decompress(plain("c/b"))[:600]), "cannot unpack"),
    "no archive": (b"PK\x05\x06" + bytes(30), "cannot unpack"),
}
assert len(HOSTILE) == 14


def unpacked(folder, data):
    """What CIFAR makes of an archive in the folder whose sum fits."""
    kind = type("Cifar", (), {"filename": "c.tar.gz", "base_folder": "c", "url": "http://127.0.0.1:9/c.tar.gz"})
    kind.tgz_md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    (folder / "c.tar.gz").write_bytes(data)
    cifar10.unpack(kind, folder)


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_archive_is_refused_and_nothing_stays(tmp_path, monkeypatch, data, message):
    monkeypatch.setattr(cifar10, "MOST_BYTES", 100_000)
    monkeypatch.setattr(cifar10, "MOST_MEMBERS", 50)
    (tmp_path / "root").mkdir()
    with pytest.raises(UsageError, match=message) as refused:
        unpacked(tmp_path / "root", data)
    assert str(refused.value).isprintable()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["root", "root/c.tar.gz"]


def test_a_good_archive_comes_out_equal_and_without_special_modes(tmp_path):
    files = {"c/a.txt": b"one", "c/below/b.bin": bytes(range(256)) * 9, "c/below/empty": b""}
    unpacked(tmp_path, tar(("c", None, {}), *((name, data, {"mode": 0o4777}) for name, data in files.items())))
    paths = [path for path in (tmp_path / "c").rglob("*") if path.is_file()]
    assert {str(path.relative_to(tmp_path)): path.read_bytes() for path in paths} == files
    assert {path.stat().st_mode & 0o7022 for path in paths} == {0}
