"""Processes that decode images, each into its place in one array. Loads no torch, so that they are at work at once."""

import multiprocessing
import os
import signal
import threading
import zlib
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from bench.data.pictures import Encoded, decode
from bench.script import main_hidden
from bench.spec import UsageError
from bench.storage.disk import write_part

TOGETHER = 128  # images that are decoded and written at once
Decoded = tuple[bytes, list[int]]  # of some images: their checksums, one after the other, and what each has lost


@dataclass(frozen=True)
class Array:
    """The file that the images are written to, and what each of them has to be."""

    file: Path
    offset: int  # of the first image, in bytes
    size: int | None  # as bench.data.pictures takes it
    row: int  # bytes of an image
    kind: str  # that every image must have, as the first one
    first: str


def decode_all(array: Array, images: Iterator[Encoded], workers: int) -> Generator[Decoded, None, None]:
    """Decode the images into the array, in order, by so many processes; by this one for 0.

    Raises UsageError for the first image that cannot be read, or is not of the kind of the first, and DiskError.
    """
    parts = enumerate(iter(lambda: list(islice(images, TOGETHER)), []))
    if not workers:
        yield from (decode_some(array, number * TOGETHER, some) for number, some in parts)
        return
    # spawned: this process may have threads, and a fork would inherit their locks
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=end_with_parent)
    ahead: deque[Future[Decoded]] = deque()
    try:
        for number, some in parts:
            with main_hidden():  # the first calls start the processes
                ahead.append(pool.submit(decode_some, array, number * TOGETHER, some))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        for future in ahead:
            yield future.result()
    except BrokenProcessPool:
        raise UsageError("a process that decodes images was killed; the same command begins again") from None
    finally:
        pool.shutdown(cancel_futures=True)


def decode_some(array: Array, start: int, images: list[Encoded]) -> Decoded:
    """Images from the place ``start`` on, in one write. Raises UsageError and DiskError as above."""
    sums, losses, pixels = bytearray(), [], bytearray()
    for name, file in images:
        planes, kind, lost = decode(name, file, array.size)
        if kind != array.kind:
            expected = f"expected images of one size and mode, got {array.first} ({array.kind})"
            raise UsageError(f"{expected} and {name} ({kind}); resize or convert them, or let --image-size do it")
        image = b"".join(planes)
        sums += checksum(image)
        losses.append(lost)
        pixels += image
    write_part(array.file, array.offset + start * array.row, pixels)
    return bytes(sums), losses


def end_with_parent() -> None:
    """In a worker: end when the process that has started it is gone, and leave Ctrl-C to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def checksum(pixels: bytes) -> bytes:
    """CRC-32, four bytes."""
    return zlib.crc32(pixels).to_bytes(4, "little")
