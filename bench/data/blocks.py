"""Blocks of a decoded array: several processes decode them and put them into their places, each on its own.

Loads no torch, so that a process is at work at once.
"""

import functools
import multiprocessing
import os
import signal
import threading
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from bench.data.pictures import decode
from bench.spec import UsageError
from bench.storage.disk import write_bytes, write_part

BLOCK = 128  # images that are written, remembered and checked together
SUM, REMEMBERED = 4, 5  # bytes of a checksum, and of all that is remembered of an image

Image = tuple[str, Path | bytes]  # name, and its file or its bytes
Block = tuple[int, Path, list[Image]]  # place of its first image, the file that remembers it, images


@dataclass(frozen=True)
class Task:
    """The array that the blocks are of."""

    array: Path
    offset: int  # of the first image, in bytes
    size: int | None  # as bench.data.pictures takes it
    row: int  # bytes of an image
    kind: str  # that every image must have, as the first one
    first: str

    def place(self, start: int) -> int:
        """Of an image, in bytes."""
        return self.offset + start * self.row


def decode_blocks(task: Task, todo: Iterable[Block], workers: int) -> Iterator[tuple[int, bytes]]:
    """(start, what is remembered) of each block as it is done, by so many processes; by this one for 0. UsageError."""
    if not workers:
        yield from (decode_block(task, block) for block in todo)
        return
    # spawned: this process may have threads, and a fork would inherit their locks
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=end_with_parent)
    todo = iter(todo)
    try:
        running = {pool.submit(decode_block, task, block) for block in islice(todo, 2 * workers)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                yield each.result()
            running |= {pool.submit(decode_block, task, block) for block in islice(todo, len(done))}
    except BrokenProcessPool:
        raise UsageError("a process that decodes images was killed; the same command goes on from there") from None
    finally:
        pool.shutdown(cancel_futures=True)


def decode_block(task: Task, block: Block) -> tuple[int, bytes]:
    """Decode the images into their place in the array, then remember what is returned: REMEMBERED bytes for each.

    All checksums, then for each what its file has lost (bench.data.pictures). Raises UsageError for an image that
    cannot be read, or is not of the kind of the first.
    """
    start, memory, images = block
    sums, losses = bytearray(), bytearray()

    def pixels() -> Iterator[bytes]:
        for image, file in images:
            planes, kind, lost = decode(image, file, task.size)
            if kind != task.kind:
                expected = f"expected images of one size and mode, got {task.first} ({task.kind})"
                raise UsageError(f"{expected} and {image} ({kind}); resize or convert them, or let --image-size do it")
            sums.extend(checksum(*planes))
            losses.append(lost)
            yield from planes

    write_part(task.array, task.place(start), b"".join(pixels()))
    write_bytes(memory, bytes(sums + losses), synced=False)
    return start, bytes(sums + losses)


def end_with_parent() -> None:
    """In a worker: end when the process that has started it is gone, and leave Ctrl-C to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def checksum(*planes: bytes) -> bytes:
    """CRC-32 of one after the other, four bytes."""
    return functools.reduce(lambda sum, plane: zlib.crc32(plane, sum), planes, 0).to_bytes(4, "little")
