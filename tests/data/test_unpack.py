"""Archives stay in their folder and under their limits: good ones come out equal, 14 hostile ones are refused."""

import bz2
import gzip
import hashlib
import io
import lzma
import struct
import tarfile
import zipfile

import pytest

from bench.data.unpack import unpack
from bench.datasets import cifar10
from bench.spec import UsageError

GOOD = {"a.txt": b"one", "below/b.bin": bytes(range(256)) * 9, "below/empty": b"", "below/ünï 1.txt": b"x" * 511}


def tar(path, *members, mode="w:gz"):
    """A tar of (name, data or None for a folder, changes of the header)."""
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as archive:
        for name, data, changes in members:
            member = tarfile.TarInfo(name)
            member.size, member.type = len(data or b""), tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            for key, value in changes.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(data or b""))
    return path


def zipped(path, *members, **changes):
    """A deflated zip of (name, data), with changes of every entry."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            for key, value in changes.items():
                setattr(entry, key, value)
            archive.writestr(entry, data)
    return path


def found(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_good_tar_comes_out_equal(tmp_path, mode):
    members = [("below", None, {}), *((name, data, {"mode": 0o4777}) for name, data in GOOD.items())]
    archive = tar(tmp_path / "good.tar", *members, mode=mode)
    (tmp_path / "out").mkdir()
    unpack(archive, tmp_path / "out")
    assert found(tmp_path / "out") == GOOD
    assert {file.stat().st_mode & 0o7111 for file in (tmp_path / "out").rglob("*") if file.is_file()} == {0}


def test_a_good_zip_comes_out_equal(tmp_path):
    archive = zipped(tmp_path / "good.zip", ("below/", b""), *GOOD.items())
    (tmp_path / "out").mkdir()
    unpack(archive, tmp_path / "out")
    assert found(tmp_path / "out") == GOOD


def test_a_member_larger_than_a_piece_comes_out_equal_and_the_limit_is_exact(tmp_path):
    data = bytes(range(256)) * 10_001
    archive = tar(tmp_path / "large.tar.gz", ("a", data, {}), ("b", b"0", {}))
    for most, files in ((len(data) + 1, {"a": data, "b": b"0"}), (len(data), {"a": data, "b": b""})):
        (tmp_path / str(most)).mkdir()
        if most == len(data):
            with pytest.raises(UsageError, match="holds more than a data set may"):
                unpack(archive, tmp_path / str(most), most_bytes=most)
        else:
            unpack(archive, tmp_path / str(most), most_bytes=most)
        assert found(tmp_path / str(most)) == files


# ---------------------------------------------------------------- hostile ones

MOST_BYTES, MOST_MEMBERS = 100_000, 50
NAMES = (
    "../out.txt",
    "a/../../out.txt",
    "/tmp/bench-canary.txt",
    "//tmp/bench-canary.txt",
    "..\\out.txt",
    "C:\\bench-canary.txt",
    "\\\\host\\share\\file",
    "x" * 1001,
    "d/" * 40 + "deep",
    "line\nbreak",
    "esc\x1b[2J",
    "bidi\u202etxt",
    "",
    ".",
    "./..",
)


def encrypted(path):
    """A zip whose entry says that it is encrypted, in both headers."""
    data = bytearray(zipped(path, ("a", b"one")).read_bytes())
    for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(magic) + place] |= 1
    path.write_bytes(data)
    return path


def lying_zip(path):
    """A bomb of a megabyte of zeros whose directory says 10 bytes."""
    data = bytearray(zipped(path, ("bomb", bytes(2**20))).read_bytes())
    start = data.index(b"PK\x01\x02")
    data[start + 24 : start + 28] = struct.pack("<I", 10)
    path.write_bytes(data)
    return path


def tar_header(size, kind=b"0"):
    """One tar header whose size is any number, negative ones in base 256."""
    header = bytearray(tarfile.TarInfo("a").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size.to_bytes(12, "big", signed=True) if size < 0 else b"%011o\0" % size
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def raw_tar(path, *blocks):
    path.write_bytes(gzip.compress(b"".join(blocks) + bytes(1024)))
    return path


def special(kind, **changes):
    return lambda path: tar(path, ("a", b"one", {}), ("special", b"", {"type": kind, **changes}))


HOSTILE = {
    "a name that leads outside, by tar": [
        lambda path, name=name: tar(path, (name, b"out", {})) for name in NAMES if name
    ],
    "a name that leads outside, by zip": [lambda path, name=name: zipped(path, (name, b"out")) for name in NAMES],
    "a symlink and a file through it": [
        lambda path: tar(path, ("l", b"", {"type": tarfile.SYMTYPE, "linkname": ".."}), ("l/out.txt", b"out", {}))
    ],
    "a hard link": [special(tarfile.LNKTYPE, linkname="../../out.txt"), special(tarfile.LNKTYPE, linkname="a")],
    "a device, a pipe": [special(kind) for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)],
    "a sparse file": [lambda path: raw_tar(path, tar_header(0, b"S"))],
    "a symlink in a zip": [
        lambda path: zipped(path, ("l", b"/etc"), external_attr=0o120777 << 16),
        lambda path: zipped(path, ("l", b""), external_attr=0o010666 << 16),
    ],
    "an encrypted zip": [encrypted],
    "two members of one name": [
        lambda path: tar(path, ("a", b"one", {}), ("./a", b"two", {})),
        lambda path: zipped(path, ("a", b"one"), ("./a", b"two")),
    ],
    "a file as the folder of another": [
        lambda path: tar(path, ("a", b"one", {}), ("a/b", b"two", {})),
        lambda path: zipped(path, ("a", b"one"), ("a/", b"")),
    ],
    "too many members": [
        lambda path: tar(path, *((str(i), b"", {}) for i in range(51))),
        lambda path: zipped(path, *((f"{i}/", b"") for i in range(51))),
    ],
    "too many bytes": [
        lambda path: tar(path, ("bomb", bytes(2**22), {})),
        lambda path: zipped(path, *((str(i), bytes(10_000)) for i in range(11))),
        lambda path: raw_tar(path, tar_header(2**22, b"L"), bytes(2**22)),  # a name of megabytes
    ],
    "sizes that lie": [
        lying_zip,
        lambda path: raw_tar(path, tar_header(2**40)),
        lambda path: raw_tar(path, tar_header(-512)),  # CVE-2025-8194: tarfile goes round for ever
        lambda path: zipped(path, ("a", bytes(1000)), compress_type=zipfile.ZIP_BZIP2),
        lambda path: zipped(path, ("a", bytes(1000)), compress_type=zipfile.ZIP_LZMA),
    ],
    "no archive": [
        lambda path: path.write_bytes(b"") and None,
        lambda path: path.write_bytes(b"PK\x05\x06" + bytes(30)) and None,
        lambda path: path.write_bytes(gzip.compress(bytes(600))[:-9]) and None,
        lambda path: path.write_bytes(bz2.compress(b"no tar")[:-3]) and None,
        lambda path: path.write_bytes(lzma.compress(b"no tar")[:-3]) and None,
        lambda path: path.write_bytes(b"".join(tar_header(100, kind) + b"9" * 512 for kind in (b"x", b"g"))) and None,
    ],
}
assert len(HOSTILE) == 14


@pytest.mark.parametrize("makers", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.timeout(200)
def test_a_hostile_archive_writes_nothing_outside_and_nothing_above_the_limit(tmp_path, makers):
    for number, make in enumerate(makers):
        box = tmp_path / str(number)
        (box / "scratch" / "out").mkdir(parents=True)
        archive = box / "archive"
        make(archive)
        before = archive.read_bytes()
        with pytest.raises(UsageError) as refused:
            unpack(archive, box / "scratch" / "out", MOST_BYTES, MOST_MEMBERS)
        assert str(archive) in str(refused.value)
        assert str(refused.value).isprintable()
        assert len(str(refused.value)) < 400
        inside = [path for path in box.rglob("*") if path != archive and (box / "scratch" / "out") in path.parents]
        assert set(box.rglob("*")) == {archive, box / "scratch", box / "scratch" / "out", *inside}
        assert not any(path.is_symlink() or not (path.is_file() or path.is_dir()) for path in inside)
        assert sum(path.stat().st_size for path in inside if path.is_file()) <= MOST_BYTES
        assert len(inside) <= MOST_MEMBERS
        assert archive.read_bytes() == before


def test_the_hostile_names_are_refused_each(tmp_path):
    """Beside a good member, so that it is the name that is refused and not the archive."""
    for number, name in enumerate(NAMES[:12]):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(UsageError, match="expected members inside the folder"):
            unpack(zipped(tmp_path / "a.zip", ("a", b"one"), (name, b"out")), tmp_path / str(number))
        assert found(tmp_path / str(number)) == {"a": b"one"}


def test_a_name_with_a_zero_byte_is_not_cut_there(tmp_path):
    archive = zipped(tmp_path / "a.zip", ("a_b", b"one"))
    archive.write_bytes(archive.read_bytes().replace(b"a_b", b"a\0b"))
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError):
        unpack(archive, tmp_path / "out")
    assert found(tmp_path / "out") == {}


def test_cifar_unpacks_with_this_and_not_with_torchvision(tmp_path, monkeypatch):
    """An archive whose sum fits and that holds a link: refused, and nothing stays."""
    kind = type("Cifar", (), {"filename": "c.tar.gz", "base_folder": "c", "url": "http://127.0.0.1:9/c.tar.gz"})
    archive = tar(tmp_path / "c.tar.gz", ("c/l", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc"}))
    kind.tgz_md5 = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    with pytest.raises(UsageError, match=r"expected plain files and folders in .*, got 'c/l'"):
        cifar10.unpack(kind, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["c.tar.gz"]
