"""Disks that fail: in memory with power cuts, failing at the N-th call, stopping at it."""

import contextlib
import errno
import os
import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from bench.storage import disk
from bench.storage.disk import Disk

METHODS = [name for name in vars(Disk) if not name.startswith("_")]


@contextlib.contextmanager
def using(other):
    """All of the store's input and output goes to this disk."""
    before, disk.DISK = disk.DISK, other
    try:
        yield other
    finally:
        disk.DISK = before


# ---------------------------------------------------------------- power cuts


@dataclass(eq=False)
class File:
    """What programs see, and what was last synced."""

    data: bytes = b""
    durable: bytes = b""


@dataclass(eq=False)
class Folder:
    """The names that programs see, those that were last synced, and the changes since: each happens as a whole."""

    names: dict = field(default_factory=dict)
    durable: dict = field(default_factory=dict)
    pending: list = field(default_factory=list)

    def change(self, **nodes):
        self.pending.append(nodes)
        applied(self.names, nodes)


def applied(names, nodes):
    """A change of a folder: None removes a name."""
    for name, node in nodes.items():
        names.pop(name, None)
        if node is not None:
            names[name] = node


class CrashDisk(Disk):
    """In memory. A power cut keeps what was synced and any part of the rest, in any order (as ALICE and SQLite do)."""

    def __init__(self):
        self.root = Folder()
        self.handles = {}

    def _find(self, path):
        node = self.root
        for part in path.parts[1:]:
            if not isinstance(node, Folder):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            if part not in node.names:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            node = node.names[part]
        return node

    def read(self, path, most=-1):
        data = self._find(path).data
        return data if most < 0 else data[:most]

    def names(self, folder):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(self._find(folder).names)
        return []

    def exists(self, path):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return self._find(path) is not None
        return False

    def make_folder(self, path):
        parent = self._find(path.parent)
        if path.name not in parent.names:
            parent.change(**{path.name: Folder()})

    def create(self, path):
        parent = self._find(path.parent)
        if path.name in parent.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        parent.change(**{path.name: File()})
        handle = len(self.handles)
        self.handles[handle] = parent.names[path.name]
        return handle

    def write(self, handle, data):
        self.handles[handle].data += bytes(data)
        return len(data)

    def sync(self, handle):
        self.handles[handle].durable = self.handles[handle].data

    def close(self, handle):
        self.handles[handle] = None

    def replace(self, old, new):
        assert old.parent == new.parent
        parent = self._find(old.parent)
        parent.change(**{old.name: None, new.name: self._find(old)})

    def sync_folder(self, path):
        folder = self._find(path)
        folder.durable, folder.pending = dict(folder.names), []

    def remove(self, path):
        parent = self._find(path.parent)
        if path.name in parent.names:
            assert isinstance(parent.names[path.name], File)
            parent.change(**{path.name: None})

    def remove_folder(self, path):
        if self._find(path).names:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        self._find(path.parent).change(**{path.name: None})

    # ------------------------------------------------------------ for tests

    def cut(self, chance: random.Random):
        """The power fails: afterwards everything that is left is durable."""
        share = chance.choice([0.0, 0.5, 1.0, chance.random()])
        kept = {}  # a file may have two names

        def left(node):
            if id(node) not in kept:
                kept[id(node)] = node_left(node)
            return kept[id(node)]

        def node_left(node):
            if isinstance(node, File):
                data = node.data
                if node.data != node.durable:
                    torn = node.data[: chance.randrange(len(node.data) + 1)]
                    zeros = torn + bytes(len(node.data) - len(torn))
                    data = chance.choice([node.durable, node.data, b"", torn, zeros])
                return File(data, data)
            names = dict(node.durable)
            for nodes in node.pending:
                if chance.random() < share:
                    applied(names, nodes)
            names = {name: left(each) for name, each in names.items()}
            return Folder(names, dict(names))

        self.root, self.handles = left(self.root), {}

    def copy(self):
        """Another disk with the same files, all of them durable."""

        def same(node):
            if isinstance(node, File):
                return File(node.data, node.data)
            names = {name: same(each) for name, each in node.names.items()}
            return Folder(names, dict(names))

        other = type(self)()
        other.root = same(self.root)
        return other

    def files(self):
        """path -> content."""

        def walk(path, node):
            for name, each in node.names.items():
                if isinstance(each, File):
                    yield path / name, each.data
                else:
                    yield from walk(path / name, each)

        return dict(walk(Path("/"), self.root))

    def spoil(self, path, data):
        """Put other content into a file, as bad hardware does."""
        file = self._find(path)
        file.data = file.durable = data


class NoSync(CrashDisk):
    """A mutant: contents are never synced."""

    def sync(self, handle):
        pass


class NoFolderSync(CrashDisk):
    """A mutant: names are never synced."""

    def sync_folder(self, path):
        pass


# ---------------------------------------------------------------- the N-th call


class Watched(Disk):
    """Hands every call to another disk; counts the calls of each method and notes the lines they came from."""

    def __init__(self, inner):
        self.inner = inner
        self.calls = Counter()
        self.sites = set()

    @property
    def count(self):
        return self.calls.total()

    def _call(self, name, *arguments):
        return getattr(self.inner, name)(*arguments)


def watched(name):
    def method(self, *arguments):
        caller = sys._getframe(1)
        self.calls[name] += 1
        self.sites.add((Path(caller.f_code.co_filename).name, caller.f_lineno, name))
        return self._call(name, *arguments)

    return method


for each in METHODS:
    setattr(Watched, each, watched(each))


class FaultDisk(Watched):
    """The N-th call fails, once or from then on: an error, after half of the data where it writes, or a short write."""

    def __init__(self, inner, at, kind, lasting):
        super().__init__(inner)
        self.at, self.kind, self.lasting = at, kind, lasting

    def _call(self, name, *arguments):
        if self.count == self.at or (self.lasting and self.count > self.at):
            if name == "write":
                handle, data = arguments
                count = self.inner.write(handle, data[: max(1, len(data) // 2)])
                if self.kind == "short":
                    return count
            if self.kind != "short":
                number = getattr(errno, self.kind)
                raise OSError(number, os.strerror(number))
        return super()._call(name, *arguments)


class Stopped(BaseException):
    """The process is gone: kill -9, or a power cut."""


class StopDisk(Watched):
    """From the N-th call on nothing is done: a process that was killed there, even when its code goes on."""

    def __init__(self, inner, at):
        super().__init__(inner)
        self.at = at

    def _call(self, name, *arguments):
        if self.count >= self.at:
            if name == "write" and self.count == self.at:
                self.inner.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
            raise Stopped
        return super()._call(name, *arguments)
